// The model, away from the page's own thread, so that the page answers while it computes.
//
// The page sends {id, method, values}; each message is answered, one after the other, by {id, result} or {id, problem}.

const FORMAT = "pocketgan-pack";
const VERSION = 1;
// of onnxruntime-web: each holds what its backend needs, and only the one in use is fetched
const RUNTIMES = { webgpu: "./onnxruntime/ort.webgpu.min.mjs", wasm: "./onnxruntime/ort.wasm.min.mjs" };
const MOST_THREADS = 4; // more are slower on the small cores of a phone

let pack; // pack.json
let graph; // bytes of the ONNX file
let baseWeights; // bytes of the weights that concepts change; null if none do
const adapters = new Map(); // concept's name to its tensors
let ort, backend, threads, session;
let computed; // name of the concept whose weights the session has
let fallback = null; // why WebGPU is not used

const METHODS = { open, choose, edit };
let queue = Promise.resolve();
onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};

async function answer({ id, method, values }) {
  try {
    const { result, transfer } = await METHODS[method](values);
    postMessage({ id, result }, transfer ?? []);
  } catch (error) {
    postMessage({ id, problem: reason(error) });
  }
}

/** What an error says; the runtime throws bare numbers, too. */
function reason(error) {
  return error?.message ?? `error ${error}`;
}

/**
 * Fetch the pack and its runtime.
 * wantedBackend: "webgpu" or "wasm"; null takes WebGPU where there is an adapter. wantedThreads: null takes what is good.
 */
async function open({ wantedBackend, wantedThreads }) {
  if (typeof WebAssembly === "undefined") {
    throw new Error("This browser lacks WebAssembly, by which the model runs; use a newer one.");
  }
  pack = parsed("pack.json", await fetched("pack.json"));
  if (pack.format !== FORMAT || pack.version !== VERSION) {
    throw new Error(
      `pack.json is of format ${pack.format}, version ${pack.version}; this page reads ${FORMAT}, version ${VERSION}. ` +
        "Export it anew.",
    );
  }
  graph = await fetched(pack.graph);
  baseWeights = pack.weights === null ? null : await fetched(pack.weights);
  // threads share memory, which browsers allow to pages that are isolated by COOP and COEP headers alone
  const cores = navigator.hardwareConcurrency ?? 1;
  threads = crossOriginIsolated ? (wantedThreads ?? Math.min(MOST_THREADS, cores)) : 1;
  if (wantedBackend !== "wasm") fallback = await whyNoWebGpu(wantedBackend === "webgpu");
  await loadRuntime(wantedBackend === "wasm" || fallback ? "wasm" : "webgpu");
  return { result: { pack } };
}

/** Say why WebGPU is not used; null if it is. insists: even where it is slower than WebAssembly. */
async function whyNoWebGpu(insists) {
  // of QuantizeLinear (docs/webgpu-operators.md of ONNX Runtime): each layer's values would go to the processor and back
  if (pack.precision === "int8" && !insists) {
    return "WebGPU has no kernels for int8, in which this model is, so the processor computes.";
  }
  if (!navigator.gpu) return "This browser has no WebGPU here, so the processor computes.";
  const adapter = await navigator.gpu.requestAdapter();
  // a fallback adapter is software
  if (!adapter || (adapter.info?.isFallbackAdapter && !insists)) {
    return "WebGPU finds no graphics card, so the processor computes.";
  }
  return null;
}

async function loadRuntime(name) {
  try {
    ort = await import(RUNTIMES[name]);
  } catch (error) {
    throw new Error(`${RUNTIMES[name]} could not be loaded (${error.message}); export the page anew.`);
  }
  ort.env.wasm.numThreads = threads;
  backend = name;
}

/** Fetch a file of the pack, whole and undamaged, as bytes. */
async function fetched(name) {
  let response, buffer;
  try {
    response = await fetch(name);
    buffer = await response.arrayBuffer();
  } catch (error) {
    throw new Error(`${name} could not be fetched (${error.message}); is the server still running?`);
  }
  if (!response.ok) {
    throw new Error(`${name} is missing (the server answers ${response.status}); export the page anew.`);
  }
  const expected = pack?.sha256?.[name];
  // browsers give crypto.subtle to https and localhost alone
  if (expected && crypto.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
    const found = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== expected) {
      throw new Error(
        `${name} is damaged: its SHA-256 is ${found}, but pack.json says ${expected}. ` +
          "Copy the file anew, or export the page anew.",
      );
    }
  }
  return new Uint8Array(buffer);
}

/** Read JSON of a file from its bytes. */
function parsed(file, bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new Error(`${file} is damaged (${error.message}); copy the file anew, or export the page anew.`);
  }
}

/** Make a concept the current one. scale: of its adapter's low-rank change; 1 is as trained. */
async function choose({ concept, scale }) {
  const { file } = pack.concepts.find(({ name }) => name === concept);
  if (file !== null && baseWeights === null) throw new Error(`pack.json has ${file}, but no weights that it changes.`);
  if (file !== null && !adapters.has(concept)) adapters.set(concept, tensorsOf(file, await fetched(file)));
  const tensors = adapters.get(concept) ?? new Map();
  const weights = baseWeights && changed(tensors, scale, file);
  try {
    await makeSession(weights);
    // a graphics driver refuses a graph in its first run
    if (backend === "webgpu") await run(new Uint8Array(3 * pack.size ** 2), pack.size, pack.size);
  } catch (error) {
    if (backend !== "webgpu") throw new Error(`The model does not start: ${reason(error)}`);
    fallback = `WebGPU does not run this model (${reason(error)}), so the processor computes.`;
    session = undefined; // it belongs to the runtime that failed
    await loadRuntime("wasm");
    await makeSession(weights);
  }
  computed = concept;
  const scalable = [...tensors.keys()].some((name) => name.endsWith(".lora_A"));
  return { result: { scalable, backend, threads, fallback, isolated: crossOriginIsolated } };
}

async function makeSession(weights) {
  // errors alone: WebGPU leaves arithmetic on shapes to the processor, and would warn of it
  const options = { executionProviders: [backend], graphOptimizationLevel: rightLevel(), logSeverityLevel: 3 };
  if (weights) options.externalData = [{ path: pack.weights, data: weights }];
  const made = await ort.InferenceSession.create(graph, options);
  await session?.release();
  session = made;
}

/**
 * How far the runtime may rewrite the graph: extended rewrites make WebGPU compute something else, 33 dB from Python where
 * basic ones are at 89 (https://github.com/microsoft/onnxruntime/issues/32145).
 */
function rightLevel() {
  return backend === "webgpu" ? "basic" : "all";
}

/** Read a safetensors file: each tensor's name to its shape and float32 values. */
function tensorsOf(file, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 8 + Number(view.getBigUint64(0, true));
  const { __metadata__, ...header } = parsed(file, bytes.subarray(8, start));
  return new Map(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
      if (dtype !== "F32") throw new Error(`${file}: ${name} is ${dtype}, but adapters are F32; export the page anew.`);
      return [name, { shape, values: floats(bytes, start + from, to - from) }];
    }),
  );
}

/** Copy bytes out as float32: what lies in a file need not lie at a multiple of four. */
function floats(bytes, offset, length) {
  return new Float32Array(bytes.slice(offset, offset + length).buffer);
}

/** The base's weights with an adapter's whole tensors and low-rank changes, as bytes. */
function changed(tensors, scale, file) {
  const weights = baseWeights.slice();
  for (const target of new Set([...tensors.keys()].map((name) => name.replace(/\.lora_[AB]$/, "")))) {
    const place = pack.changing[target];
    if (!place) throw new Error(`${file} changes ${target}, which is no changing weight of this pack.`);
    const [whole, down, up] = ["", ".lora_A", ".lora_B"].map((ending) => tensors.get(target + ending));
    if (!whole && !(down && up)) throw new Error(`${file} has only one of ${target}.lora_A and ${target}.lora_B.`);
    const base = floats(weights, place.offset, place.length);
    const written = whole ? whole.values : lowRankSum(base, up, down, scale);
    if (written.byteLength !== place.length) {
      throw new Error(`${file}: ${target} has ${written.byteLength} bytes, but ${place.length} in the base.`);
    }
    weights.set(new Uint8Array(written.buffer), place.offset);
  }
  return weights;
}

/** base + scale · up @ down, with up (outputs, rank) and down (rank, inputs). */
function lowRankSum(base, up, down, scale) {
  const [outputs, rank] = up.shape;
  const inputs = down.shape[1];
  if (down.shape[0] !== rank || outputs * inputs !== base.length) {
    throw new Error(`A low-rank pair is ${up.shape} @ ${down.shape}, but its weight has ${base.length} values.`);
  }
  for (let output = 0; output < outputs; output++) {
    for (let inner = 0; inner < rank; inner++) {
      const factor = scale * up.values[output * rank + inner];
      for (let input = 0; input < inputs; input++) {
        base[output * inputs + input] += factor * down.values[inner * inputs + input];
      }
    }
  }
  return base;
}

/** Edit a picture. pixels: RGBA, row by row; the result has the same size. */
async function edit({ pixels, width, height }) {
  const photo = new Uint8ClampedArray(pixels);
  const [paddedWidth, paddedHeight] = [width, height].map((length) =>
    pack.dynamic_size ? Math.ceil(length / pack.size_divisor) * pack.size_divisor : pack.size,
  );
  // the last row and column are repeated up to a size that the model takes, as `pocketgan edit` does
  const taken = new Uint8Array(3 * paddedWidth * paddedHeight);
  for (let y = 0, to = 0; y < paddedHeight; y++) {
    const row = Math.min(y, height - 1) * width;
    for (let x = 0; x < paddedWidth; x++) {
      const from = 4 * (row + Math.min(x, width - 1));
      taken[to++] = photo[from];
      taken[to++] = photo[from + 1];
      taken[to++] = photo[from + 2];
    }
  }
  const started = performance.now();
  let given;
  try {
    given = await run(taken, paddedWidth, paddedHeight);
  } catch (error) {
    throw new Error(`The model fails at ${paddedWidth} × ${paddedHeight} pixels (${reason(error)}); choose a smaller size.`);
  }
  const milliseconds = performance.now() - started;
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0, from = 3 * y * paddedWidth; x < width; x++) {
      photo[to++] = given[from++];
      photo[to++] = given[from++];
      photo[to++] = given[from++];
      photo[to++] = 255;
    }
  }
  return { result: { pixels: photo.buffer, milliseconds, concept: computed }, transfer: [photo.buffer] };
}

async function run(pixels, width, height) {
  const photo = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const { edit } = await session.run({ photo });
  return edit.getData();
}
