// Pictures of a sound: from the bytes of a 16-bit mono WAV to a waveform and a spectrogram on a canvas.

export function decodeWav(bytes) {
  const view = new DataView(bytes.buffer);
  let at = 12, rate = 22050;
  while (at + 8 <= view.byteLength) {
    const name = String.fromCharCode(...bytes.slice(at, at + 4)), size = view.getUint32(at + 4, true);
    if (name === "fmt ") rate = view.getUint32(at + 12, true);
    if (name === "data") {
      const samples = new Float32Array(Math.min(size, view.byteLength - at - 8) >> 1);
      for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(at + 8 + 2 * i, true) / 32768;
      return { samples, rate };
    }
    at += 8 + size + (size & 1);
  }
  throw new Error("the sound is no WAV file");
}

function fitted(canvas) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  return canvas.getContext("2d");
}

export function drawWave(canvas, samples) {
  const context = fitted(canvas), { width, height } = canvas;
  context.fillStyle = getComputedStyle(canvas).getPropertyValue("--wave");
  let loudest = 1e-4;
  for (const sample of samples) loudest = Math.max(loudest, Math.abs(sample));
  for (let x = 0; x < width; x++) {
    let low = 0, high = 0;
    const end = Math.ceil((x + 1) * samples.length / width);
    for (let i = Math.floor(x * samples.length / width); i < end && i < samples.length; i++) {
      low = Math.min(low, samples[i]);
      high = Math.max(high, samples[i]);
    }
    const top = (1 - high / loudest) * height / 2, bottom = (1 - low / loudest) * height / 2;
    context.fillRect(x, top, 1, Math.max(1, bottom - top));
  }
}

const SIZE = 512, BANDS = 96, LOWEST_HZ = 50, RANGE_DB = 80;

// log-frequency bands over time, in decibels below the loudest cell
export function drawSpectrogram(canvas, samples, rate) {
  const context = fitted(canvas), { width, height } = canvas;
  const frames = Math.max(1, Math.min(width, Math.floor(samples.length / 64)));
  const window_ = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / SIZE));
  const top = Math.log((rate / 2) / LOWEST_HZ);
  const edge = (band) => LOWEST_HZ * Math.exp(top * band / BANDS) / rate * SIZE;
  const cells = new Float32Array(frames * BANDS);
  const real = new Float32Array(SIZE), imaginary = new Float32Array(SIZE);
  let loudest = -200;
  for (let frame = 0; frame < frames; frame++) {
    const start = Math.round((frame + 0.5) * samples.length / frames - SIZE / 2);
    for (let i = 0; i < SIZE; i++) { real[i] = (samples[start + i] ?? 0) * window_[i]; imaginary[i] = 0; }
    transform(real, imaginary);
    for (let band = 0; band < BANDS; band++) {
      const first = Math.min(SIZE / 2, Math.round(edge(band))), last = Math.max(first, Math.min(SIZE / 2, Math.round(edge(band + 1)) - 1));
      let power = 1e-12;
      for (let bin = first; bin <= last; bin++) power = Math.max(power, real[bin] ** 2 + imaginary[bin] ** 2);
      const decibels = 10 * Math.log10(power);
      cells[frame * BANDS + band] = decibels;
      loudest = Math.max(loudest, decibels);
    }
  }
  const picture = context.createImageData(frames, BANDS);
  for (let frame = 0; frame < frames; frame++) {
    for (let band = 0; band < BANDS; band++) {
      const share = Math.max(0, 1 + (cells[frame * BANDS + band] - loudest) / RANGE_DB);
      picture.data.set(colour(share), 4 * ((BANDS - 1 - band) * frames + frame));
    }
  }
  const small = new OffscreenCanvas(frames, BANDS);
  small.getContext("2d").putImageData(picture, 0, 0);
  context.drawImage(small, 0, 0, width, height);
}

// magma, in five stops
const STOPS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
function colour(share) {
  const place = Math.min(share, 0.9999) * (STOPS.length - 1), at = Math.floor(place), part = place - at;
  return [...STOPS[at].map((value, i) => value + part * (STOPS[at + 1][i] - value)), 255];
}

// fast Fourier transform in place, radix 2 (Cooley and Tukey 1965)
function transform(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [real[i], real[j]] = [real[j], real[i]]; [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]]; }
  }
  for (let length = 2; length <= size; length <<= 1) {
    const angle = -2 * Math.PI / length;
    for (let start = 0; start < size; start += length) {
      for (let k = 0; k < length / 2; k++) {
        const cos = Math.cos(angle * k), sin = Math.sin(angle * k), a = start + k, b = a + length / 2;
        const re = real[b] * cos - imaginary[b] * sin, im = real[b] * sin + imaginary[b] * cos;
        real[b] = real[a] - re; imaginary[b] = imaginary[a] - im;
        real[a] += re; imaginary[a] += im;
      }
    }
  }
}
