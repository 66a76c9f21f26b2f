"""A cluster's signal in the middle of a step."""

import os
import signal

from lightning_modules import PairedGAN


def signal_in_step(monkeypatch, seen=None):
    """Send SIGUSR1 between the steps of generator and discriminator, at so many images seen or at every one."""
    step = PairedGAN.train_discriminators

    def called(self, *args):
        if seen is None or self.images_seen == seen:
            os.kill(os.getpid(), signal.SIGUSR1)
        step(self, *args)

    monkeypatch.setattr(PairedGAN, "train_discriminators", called)
