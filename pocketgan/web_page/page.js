// The page: takes photos from files, the clipboard and the camera, shows the model's edits of them.
//
// The model is in worker.js. `?backend=wasm` or `webgpu` and `?threads=N` in the address choose what computes.

const SIZES = [128, 256, 384, 512, 768]; // pixels of the longer side
const ORIGINAL_LIMIT = 1024; // pixels of the longer side, beyond which a browser's memory does not do
const SMALLEST_SIDE = 32; // as for `pocketgan edit`
const FRAMES_MEASURED = 10;
const SECURE_ADDRESS_NEEDED =
  "Browsers give WebGPU, the camera and more than one thread to https and localhost alone: open the page by https, or " +
  "as localhost on the machine that serves it.";
const CAMERA_PROBLEMS = {
  NotAllowedError: "The camera may not be used: allow it in the browser's settings for this site, then start it again.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera is in use by another program; close that one, then start it again.",
  OverconstrainedError: "The chosen camera is no longer there; start again.",
};

const page = new Proxy({}, { get: (_, id) => document.getElementById(id) });
const photoContext = page.photo.getContext("2d", { willReadFrequently: true });
const resultContext = page.result.getContext("2d");
// what the model sees and gives, neither of which has transparent parts
const [seenCanvas, editCanvas] = [document.createElement("canvas"), document.createElement("canvas")];
const seenContext = seenCanvas.getContext("2d", { willReadFrequently: true });
const editContext = editCanvas.getContext("2d");

let pack = null; // until the model is open
let concept = null; // the chosen one's name
let readyConcept = null; // the one that the model computes
let isReady = false; // to edit
// what is shown: {picture, width, height, name}, with the original size of a reduced photo and the stream of a live camera
let source = null;
let shownEdit = null; // {name, concept} of the edit that the result's canvas holds
let busy = 0; // how many changes of what is shown are under way, a live camera's frames left out
let wishes = 0; // how many photos and cameras were asked for; the number of the latest
let shownWish = 0; // the number of the one that is shown; whatever was asked for before it comes too late
let startingCamera = 0; // the wish for the camera that is not live yet

// ---------------------------------------------------------------- the worker
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();

worker.onmessage = ({ data: { id, result, problem } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (problem === undefined) resolve(result);
  else reject(new Error(problem));
};
worker.onerror = (event) => report(new Error(`The page's worker does not start: ${event.message ?? "no reason given"}`));

function ask(method, values, transfer = []) {
  const id = crypto.getRandomValues(new Uint32Array(1))[0];
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, method, values }, transfer);
  });
}

/** Make a function that works one at a time; calls meanwhile lead to one more time, with the settings of then. */
function oneAtATime(work) {
  let working = null;
  let again = false;
  return () => {
    again = true;
    working ??= (async () => {
      while (again) {
        again = false;
        await work().catch(report);
      }
      working = null;
    })();
    return working;
  };
}

/** Do what changes the shown edit; meanwhile the page is busy, and gives no download of what is wanted no longer. */
async function busily(work) {
  busy++;
  showBusy();
  try {
    return await work();
  } finally {
    busy--;
    showBusy();
  }
}

function showBusy() {
  page.stage.setAttribute("aria-busy", busy > 0);
  page.download.disabled = shownEdit === null || (busy > 0 && !isLive());
}

// ---------------------------------------------------------------- what is said
function say(text) {
  // a live region is read out at each change
  if (page.status.textContent !== text) page.status.textContent = text;
}

function report(error) {
  // a frame of the camera may fail as the one before did
  if (page.problem.hidden || page.problem.textContent !== error.message) page.problem.textContent = error.message;
  page.problem.hidden = false;
  if (!isReady) say("");
}

/** Take the message away, but not the one that says why there is no model. */
function forgetProblem() {
  if (isReady) page.problem.hidden = true;
}

// ---------------------------------------------------------------- the model
async function openModel() {
  say("Loading the model.");
  const asked = new URLSearchParams(location.search);
  const opened = await ask("open", {
    wantedBackend: asked.get("backend"),
    wantedThreads: Number(asked.get("threads")) || null,
  });
  pack = opened.pack;
  if (pack.title) page.title.textContent = document.title = pack.title;
  for (const { name } of pack.concepts) {
    const radio = document.createElement("input");
    [radio.type, radio.name, radio.value] = ["radio", "concept", name];
    radio.onchange = () => {
      concept = name;
      choose();
    };
    const choice = document.createElement("label");
    choice.className = "choice";
    choice.append(radio, label(name));
    page.concepts.append(choice);
  }
  offerSizes();
  concept = pack.concepts[0].name;
  await choose();
}

/** What a concept is called on the page. */
function label(name) {
  return name.replaceAll("_", " ");
}

function offerSizes() {
  const { size: ofTraining, size_divisor: divisor, dynamic_size: isDynamic } = pack;
  const fitting = SIZES.concat(ofTraining).filter((size) => size % divisor === 0 && size < ORIGINAL_LIMIT);
  const sizes = isDynamic ? [...new Set(fitting)].sort((one, other) => one - other) : [ofTraining];
  for (const size of sizes) page.size.append(new Option(`${size} px`, size));
  if (isDynamic) page.size.append(new Option(`Original, up to ${ORIGINAL_LIMIT} px`, ORIGINAL_LIMIT));
  const good = (size) => size >= Math.max(ofTraining, 256);
  page.size.value = isDynamic ? (sizes.find(good) ?? ORIGINAL_LIMIT) : ofTraining;
  page.size.disabled = !isDynamic;
}

/** Show which concept is chosen. */
function press(name) {
  for (const radio of page.concepts.querySelectorAll("input")) radio.checked = radio.value === name;
  const { prompt } = pack.concepts.find((each) => each.name === name);
  page.prompt.textContent = prompt;
  page.prompt.hidden = !prompt || prompt === name;
}

const choose = oneAtATime(() => busily(compute));

/** Have the model compute the chosen concept. */
async function compute() {
  forgetProblem();
  press(concept);
  const chosen = concept;
  let made;
  try {
    made = await ask("choose", { concept: chosen, scale: page.scale.valueAsNumber });
  } catch (error) {
    // the model still computes the one before
    if (readyConcept !== null) press((concept = readyConcept));
    throw error;
  }
  page.scale_field.hidden = !made.scalable;
  page.backend.textContent =
    made.backend === "webgpu" ? "WebGPU" : `WebAssembly, ${made.threads} ${made.threads === 1 ? "thread" : "threads"}`;
  const notes = made.fallback ? [made.fallback] : [];
  if (!isSecureContext) notes.push(SECURE_ADDRESS_NEEDED);
  else if (!made.isolated && made.backend === "wasm") {
    notes.push(
      "It computes on one thread, because the server does not send the COOP and COEP headers that more need; " +
        "“pocketgan serve” does.",
    );
  }
  page.note.textContent = notes.join(" ");
  page.note.hidden = notes.length === 0;
  page.problem.hidden = true;
  readyConcept = chosen;
  isReady = true;
  if (source === null) say("Ready. Choose a photo, or start the camera.");
  else if (!isLive()) await refresh();
}

// ---------------------------------------------------------------- photo to edit
const refresh = oneAtATime(async () => {
  if (source === null) return;
  const [width, height] = editedSize(source);
  const isOtherSize = page.photo.width !== width || page.photo.height !== height;
  if (isOtherSize || shownEdit === null) {
    shownEdit = null;
    for (const canvas of [page.photo, page.result, seenCanvas, editCanvas]) {
      [canvas.width, canvas.height] = [width, height];
    }
    page.frame.style.setProperty("--aspect", width / height);
  }
  drawPhoto(source.picture, width, height);
  page.photo_size.textContent = source.original
    ? `${inPixels(source.original)}, reduced to ${inPixels(source)}`
    : inPixels(source);
  page.frame.hidden = false;
  page.hint.hidden = true;
  if (!isReady) {
    resultContext.globalCompositeOperation = "copy";
    resultContext.drawImage(page.photo, 0, 0);
    return;
  }
  const edited = source;
  const { data } = seenContext.getImageData(0, 0, width, height);
  const ofModel = () => ask("edit", { pixels: data.buffer, width, height }, [data.buffer]);
  const { pixels, milliseconds, concept } = isLive() ? await ofModel() : await busily(ofModel);
  if (source !== edited) return; // another was chosen, and is next
  editContext.putImageData(new ImageData(new Uint8ClampedArray(pixels), width, height), 0, 0);
  shownEdit = { name: edited.name, concept };
  blend();
  page.milliseconds.textContent = `${milliseconds < 100 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
  page.edited_size.textContent = inPixels({ width, height });
  const said = `edited as ${label(concept)}`;
  page.result.setAttribute("aria-label", `After: ${edited.name}, ${said}`);
  showBusy();
  say(isLive() ? `The camera is live, ${said}.` : `${edited.name} ${said}.`);
});

function inPixels({ width, height }) {
  return `${width} × ${height} px`;
}

/** Draw a picture: for the model on white, and on the page the same with the picture's transparency, as in Python. */
function drawPhoto(picture, width, height) {
  photoContext.globalCompositeOperation = "copy";
  photoContext.imageSmoothingQuality = "high";
  photoContext.drawImage(picture, 0, 0, width, height);
  seenContext.fillStyle = "white";
  seenContext.fillRect(0, 0, width, height);
  seenContext.drawImage(page.photo, 0, 0);
  photoContext.globalCompositeOperation = "source-atop"; // its colours, the opacity that is there
  photoContext.drawImage(seenCanvas, 0, 0);
}

/** Width and height of a picture whose longer side is as chosen; it is never enlarged to "original". */
function editedSize({ width, height }) {
  const wanted = pack === null ? ORIGINAL_LIMIT : Number(page.size.value);
  const longer = Math.max(width, height);
  const isOriginal = pack === null || (pack.dynamic_size && wanted === ORIGINAL_LIMIT);
  const factor = (isOriginal ? Math.min(wanted, longer) : wanted) / longer;
  return [width, height].map((length) => Math.max(1, Math.round(length * factor)));
}

/** Mix the photo and its edit by the strength, with the photo's transparency. */
function blend() {
  if (shownEdit === null) return;
  resultContext.globalCompositeOperation = "source-over";
  resultContext.globalAlpha = 1;
  resultContext.drawImage(seenCanvas, 0, 0);
  resultContext.globalAlpha = page.strength.valueAsNumber / 100;
  resultContext.drawImage(editCanvas, 0, 0);
  resultContext.globalAlpha = 1;
  resultContext.globalCompositeOperation = "destination-in"; // its opacity, the colours that are there
  resultContext.drawImage(page.photo, 0, 0);
}

// ---------------------------------------------------------------- what is shown
/** Show a photo or a camera, unless one that was asked for later is there already. */
function show(wish, shown) {
  if (wish < shownWish) {
    letGo(shown);
    return false;
  }
  letGo(source);
  if (wish !== shownWish) shownEdit = null; // a camera's last frame is shown for the same wish as the camera
  [source, shownWish] = [shown, wish];
  showBusy();
  page.camera.textContent = isLive() ? "Stop camera" : "Start camera";
  page.camera.disabled = startingCamera > shownWish;
  page.device_field.hidden = true;
  page.frames.textContent = "–";
  return true;
}

function isLive() {
  return Boolean(source?.stream);
}

/** Free a source's memory, or its camera. */
function letGo(shown) {
  shown?.picture.close?.();
  stopTracks(shown?.stream);
}

function stopTracks(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

// ---------------------------------------------------------------- photos
async function takePhoto(file) {
  const wish = ++wishes;
  forgetProblem();
  const name = file.name || "The photo";
  try {
    const { picture, original } = await readPicture(file, name);
    if (!show(wish, { picture, width: picture.width, height: picture.height, name, original })) return;
    if (pack === null && page.problem.hidden) say("The model is still loading.");
    await refresh();
  } catch (error) {
    report(error);
  }
}

/** Read a picture's file. Gives the picture and, where that had to be reduced to the limit, its original size. */
async function readPicture(file, name) {
  let picture;
  try {
    picture = await createImageBitmap(file); // upright and in sRGB
  } catch {
    const head = new TextDecoder("latin1").decode(await file.slice(0, 32).arrayBuffer());
    const remedy = /ftyp(heic|heix|hevc|mif1|msf1)/.test(head)
      ? "It is a HEIC photo, which few browsers but Safari read; save it as JPEG first."
      : "Use JPEG, PNG, WebP or AVIF.";
    throw new Error(`${name} cannot be read as a picture by this browser. ${remedy}`);
  }
  const { width, height } = picture;
  if (Math.min(width, height) < SMALLEST_SIDE) {
    throw new Error(`${name} is ${width} × ${height} pixels; both sides must be at least ${SMALLEST_SIDE}.`);
  }
  const factor = ORIGINAL_LIMIT / Math.max(width, height);
  if (factor >= 1) return { picture };
  // a camera's photo takes 100 MB or more
  const smaller = await createImageBitmap(picture, {
    resizeWidth: Math.max(1, Math.round(width * factor)),
    resizeHeight: Math.max(1, Math.round(height * factor)),
    resizeQuality: "high",
  });
  picture.close();
  return { picture: smaller, original: { width, height } };
}

page.choose.onclick = () => page.file.click();
page.file.onchange = () => {
  if (page.file.files.length) takePhoto(page.file.files[0]);
  page.file.value = ""; // choosing the same file again is a change, too
};
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) takePhoto(file);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  page.stage.classList.add("receives");
});
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, () => page.stage.classList.remove("receives"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault(); // or the browser would leave the page for the picture
  const [file] = event.dataTransfer.files;
  if (file) takePhoto(file);
  else report(new Error("What was dropped is no file; save the picture first, or copy and paste it."));
});

page.download.onclick = () => {
  const { name, concept } = shownEdit; // the chosen concept may not be computed yet
  const stem = name.replace(/\.[^.]*$/, "").replaceAll(" ", "_");
  page.result.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${stem}_${concept}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000); // not before the browser has taken it
  }, "image/png");
};

// ---------------------------------------------------------------- the camera
async function startCamera(deviceId = null) {
  forgetProblem();
  if (!navigator.mediaDevices?.getUserMedia) {
    report(new Error(isSecureContext ? "This browser gives pages no camera; try another." : SECURE_ADDRESS_NEEDED));
    return;
  }
  stopCamera(); // a phone opens one at a time
  const wish = (startingCamera = ++wishes);
  const hadFocus = document.activeElement === page.camera;
  page.camera.disabled = true;
  const which = deviceId === null ? { facingMode: "environment" } : { deviceId: { exact: deviceId } };
  let stream = null; // while nobody else can stop it
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { ...which, width: { ideal: 640 } } });
    const video = document.createElement("video");
    [video.srcObject, video.muted, video.playsInline] = [stream, true, true];
    await video.play();
    const live = { picture: video, width: video.videoWidth, height: video.videoHeight, name: "Camera", stream };
    if (!show(wish, live)) return;
    stream.getVideoTracks()[0].onended = () => {
      stopCamera();
      report(new Error("The camera was taken away; start it again."));
    };
    showFrames(live);
    await offerDevices(live);
  } catch (error) {
    if (source?.stream !== stream) stopTracks(stream);
    if (wish < shownWish) return; // a photo was taken instead
    report(new Error(CAMERA_PROBLEMS[error.name] ?? `The camera does not start: ${error.message}`));
  } finally {
    if (startingCamera === wish) {
      startingCamera = 0;
      page.camera.disabled = false;
      if (hadFocus && document.activeElement === document.body) page.camera.focus();
    }
  }
}

/** List the cameras; browsers name them only once one is allowed. */
async function offerDevices(live) {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
  if (source !== live) return;
  const current = live.stream.getVideoTracks()[0].getSettings().deviceId;
  page.device.replaceChildren(
    ...devices.map(({ deviceId, label }, index) => {
      const isCurrent = deviceId === current;
      return new Option(label || `Camera ${index + 1}`, deviceId, isCurrent, isCurrent);
    }),
  );
  page.device_field.hidden = devices.length < 2;
}

/** Edit frame after frame until another source is shown; a tab in the background rests. */
async function showFrames(live) {
  const ends = [];
  while (source === live) {
    await new Promise(requestAnimationFrame);
    if (source !== live) return;
    [live.width, live.height] = [live.picture.videoWidth, live.picture.videoHeight]; // a phone may be turned
    await refresh();
    ends.push(performance.now());
    if (ends.length > FRAMES_MEASURED) ends.shift();
    if (isReady && ends.length > 1 && source === live) {
      page.frames.textContent = ((1000 * (ends.length - 1)) / (ends.at(-1) - ends[0])).toFixed(1);
    }
  }
}

/** Stop it; the last frame stays as a photo would, so that concept, size and strength still act on it. */
async function stopCamera() {
  if (!isLive()) return;
  const { picture: video, width, height, name } = source;
  const picture = document.createElement("canvas");
  [picture.width, picture.height] = [width, height];
  picture.getContext("2d").drawImage(video, 0, 0, width, height);
  show(shownWish, { picture, width, height, name });
  await refresh();
}

page.camera.onclick = async () => {
  if (!isLive()) {
    await startCamera();
    return;
  }
  const stopped = stopCamera();
  const still = source;
  await stopped;
  if (source === still) say("The camera is off.");
};
page.device.onchange = () => startCamera(page.device.value);

// ---------------------------------------------------------------- sliders
page.cut.oninput = () => {
  const percent = page.cut.value;
  page.frame.style.setProperty("--cut", `${percent}%`);
  page.cut.setAttribute("aria-valuetext", `${percent} % before, ${100 - percent} % after`);
};
page.strength.oninput = () => {
  page.strength_shown.textContent = `${page.strength.value} %`;
  page.strength.setAttribute("aria-valuetext", `${page.strength.value} %`);
  blend();
};
page.scale.oninput = () => {
  page.scale_shown.textContent = page.scale.valueAsNumber.toFixed(2);
  page.scale.setAttribute("aria-valuetext", page.scale_shown.textContent);
  if (isReady) choose();
};
page.size.onchange = () => {
  forgetProblem();
  refresh();
};
for (const slider of [page.cut, page.strength, page.scale]) slider.oninput();

openModel().catch(report);
