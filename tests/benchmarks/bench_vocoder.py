"""What the two vocoders cost on a CPU: `python tests/benchmarks/bench_vocoder.py [--repeats 5] [--threads 2]`.

4 s of sound, one row: the `default` preset's istft against HiFi-GAN V1 of `small`. Prints medians and their ratio.
"""

import argparse
import statistics
import time

import torch

from foley_ray.models.vocoder import build_vocoder
from foley_ray.presets import default, small


def seconds(call, repeats):
    call()  # first call: memory and kernels are prepared
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(config, repeats):
    vocoder = build_vocoder(config)
    frames = config.audio.mel_frames(config.audio.clip_samples)
    log_mel_BFM = torch.randn(1, frames, config.audio.mel_bands) - 5

    def forward():
        with torch.inference_mode():
            vocoder(log_mel_BFM)

    def forward_backward():
        vocoder.zero_grad()
        vocoder(log_mel_BFM).square().mean().backward()

    return seconds(forward, repeats), seconds(forward_backward, repeats)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    istft = measure(default().model, arguments.repeats)
    hifigan = measure(small().model, arguments.repeats)
    print(f"4 s of sound, {arguments.threads} threads      forward   forward + backward")
    for name, row in (("istft, 256 channels, 8 layers", istft), ("HiFi-GAN V1", hifigan)):
        print(f"{name:31s} {row[0]:8.3f} s {row[1]:12.3f} s")
    print(f"{'HiFi-GAN / istft':31s} {hifigan[0] / istft[0]:8.1f}   {hifigan[1] / istft[1]:12.1f}")


if __name__ == "__main__":
    main()
