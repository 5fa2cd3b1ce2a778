// The page: asks /v1/audio/generate for a stream of events, and shows what comes. No dependencies.
import { decodeWav, drawSpectrogram, drawWave } from "./picture.js";

const byId = (id) => document.getElementById(id);
const form = byId("form"), results = byId("results");
const SETTINGS = ["prompt", "candidates", "steps", "guidance", "duration_s", "seed"];
const HISTORY = "foley_history", MAX_HISTORY = 30;

let running = null; // AbortController of the request under way
let playing = null; // the candidate that sounds now

// ---- the form ----

function showValues() {
  for (const output of document.querySelectorAll("output")) {
    output.value = byId(output.htmlFor.value).value + (output.dataset.unit ?? "");
  }
}

function fill(settings) {
  for (const name of SETTINGS) if (settings[name] !== undefined) byId(name).value = settings[name] ?? "";
  byId("loop").checked = Boolean(settings.loop);
  showValues();
}

function wanted() {
  const body = { prompt: byId("prompt").value.trim(), loop: byId("loop").checked };
  for (const name of SETTINGS.slice(1)) if (byId(name).value !== "") body[name] = Number(byId(name).value);
  return body;
}

function headers() {
  const key = byId("key").value;
  return { "Content-Type": "application/json", ...(key && { "xi-api-key": key }) };
}

async function loadInfo() {
  const answer = await fetch("v1/info", { headers: headers() });
  if (answer.status === 401) return askForKey();
  if (!answer.ok) return;
  const info = await answer.json();
  byId("about").textContent = `model ${info.preset} ${info.model}`;
  byId("candidates").max = Math.min(info.limits.candidates, 9);
  byId("steps").max = Math.min(info.limits.steps, 200);
  byId("steps").min = Math.min(info.limits.steps, 4);
  if (!byId("prompt").value) fill(info.defaults);
}

function askForKey() {
  document.querySelector(".key").hidden = false;
  byId("key").focus();
}

function fail(message) {
  byId("error").textContent = message;
  byId("error").hidden = !message;
}

// ---- generating ----

async function generate(event) {
  event?.preventDefault();
  if (running || !form.reportValidity()) return;
  const body = wanted();
  running = new AbortController();
  fail("");
  working(true, "starting");
  try {
    const answer = await fetch("v1/audio/generate", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify({ ...body, all_candidates: true, stream: true }),
      signal: running.signal,
    });
    if (!answer.ok) {
      if (answer.status === 401) askForKey();
      throw new Error((await answer.json()).error.message);
    }
    for await (const [name, data] of events(answer.body)) {
      if (name === "progress") {
        const decoding = data.done >= data.total;
        working(true, decoding ? "decoding and ranking" : `sampling, ${data.done} of ${data.total} steps`, data.done / data.total);
      } else if (name === "result") {
        show(data);
        remember({ ...body, seed: data.clips[0].seed });
      } else if (name === "error") {
        throw new Error(data.error.message);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  } finally {
    running = null;
    working(false);
  }
}

function working(on, stage = "", share = 0) {
  byId("go").disabled = on;
  byId("stop").hidden = byId("progress").hidden = !on;
  byId("stage").textContent = stage;
  document.querySelector("progress").value = share;
}

async function* events(stream) {
  let text = "";
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const fields = Object.fromEntries(text.slice(0, end).split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      text = text.slice(end + 2);
      if (fields.event) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

// ---- results ----

function show(result) {
  document.querySelector(".empty")?.remove();
  for (const clip of result.clips) {
    const section = document.createElement("section");
    section.className = "clip";
    section.innerHTML = `<header><h2></h2><span class="quiet"></span><button type="button">Copy as curl</button></header>`;
    section.querySelector("h2").textContent = result.prompt;
    const { steps, guidance, duration_s, loop } = result.settings;
    const length = `${duration_s} s${loop ? " loop" : ""}`;
    section.querySelector("span").textContent = `seed ${clip.seed} · ${steps} steps · guidance ${guidance} · ${length}`;
    section.querySelector("button").onclick = (event) => copyCurl(event.target, result, clip);
    for (const warning of result.warnings) {
      const note = document.createElement("p");
      note.className = "warning";
      note.textContent = warning;
      section.append(note);
    }
    results.prepend(section);
    clip.candidates.forEach((candidate, index) => section.append(card(result, clip, candidate, index)));
  }
  byId("results").querySelector(".play")?.focus({ preventScroll: true });
}

function card(result, clip, candidate, index) {
  const node = byId("candidate").content.cloneNode(true).firstElementChild;
  const bytes = Uint8Array.from(atob(candidate.audio), (letter) => letter.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: result.media_type }));
  const copied = candidate.novelty !== null && candidate.novelty < 1;
  const name = `candidate ${index + 1}, score ${candidate.score.toFixed(3)}${copied ? ", near copy" : ""}`;
  const audio = new Audio(url);
  audio.loop = result.settings.loop;
  node.classList.toggle("best", index === 0);
  node.querySelector(".rank").textContent = index + 1;
  node.querySelector(".score").textContent = candidate.score.toFixed(3);
  const novelty = node.querySelector(".novelty");
  novelty.parentElement.hidden = !copied;
  novelty.textContent = candidate.novelty?.toFixed(2);
  novelty.title = "distance to the nearest recording that the model learned from; below 1 is a near copy";
  const play = node.querySelector(".play");
  play.setAttribute("aria-label", `Play ${name}`);
  const link = node.querySelector(".download");
  link.href = url;
  link.download = `${slug(result.prompt)}_seed${clip.seed}_${candidate.index}.${result.format}`;
  link.setAttribute("aria-label", `Download ${name}`);

  const { samples, rate } = decodeWav(bytes);
  const wave = node.querySelector(".wave"), spectrogram = node.querySelector(".spectrogram");
  wave.setAttribute("aria-label", `Waveform of ${name}`);
  spectrogram.setAttribute("aria-label", `Spectrogram of ${name}`);
  new ResizeObserver(() => { drawWave(wave, samples); drawSpectrogram(spectrogram, samples, rate); }).observe(wave);

  const cursor = node.querySelector(".cursor");
  const follow = () => {
    cursor.style.left = `${100 * audio.currentTime / (samples.length / rate)}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  const toggle = () => (audio.paused ? (playing?.pause(), (playing = audio), audio.play()) : audio.pause());
  audio.onplay = () => { play.setAttribute("aria-pressed", "true"); cursor.hidden = false; follow(); };
  audio.onpause = audio.onended = () => { play.setAttribute("aria-pressed", "false"); };
  play.onclick = toggle;
  node.querySelector(".picture").onclick = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * (samples.length / rate);
    if (audio.paused) toggle();
  };
  return node;
}

async function copyCurl(button, result, clip) {
  const { settings, prompt, format } = result;
  const body = JSON.stringify({ prompt, seed: clip.seed, ...settings, format, response: "audio" }).replaceAll("'", "'\\''");
  const key = byId("key").value ? ` -H "xi-api-key: $FOLEY_KEY"` : "";
  const address = new URL("v1/audio/generate", location.href);
  const command = `curl -sf ${address} -H 'Content-Type: application/json'${key} -d '${body}' -o ${slug(prompt)}_seed${clip.seed}.${format}`;
  await navigator.clipboard.writeText(command);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy as curl"), 1500);
}

function slug(text) {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_+|_+$/g, "").slice(0, 40) || "sound";
}

// ---- history ----

function history() {
  try { return JSON.parse(localStorage.getItem(HISTORY)) ?? []; } catch { return []; }
}

function remember(entry) {
  const others = history().filter((item) => JSON.stringify(item) !== JSON.stringify(entry));
  localStorage.setItem(HISTORY, JSON.stringify([entry, ...others].slice(0, MAX_HISTORY)));
  showHistory();
}

function showHistory() {
  const entries = history();
  byId("history").hidden = !entries.length;
  byId("history").querySelector("ul").replaceChildren(...entries.map((entry) => {
    const item = document.createElement("li"), button = document.createElement("button"), detail = document.createElement("span");
    button.type = "button";
    button.textContent = entry.prompt;
    detail.textContent = `seed ${entry.seed} · ${entry.candidates} candidates · ${entry.duration_s} s`;
    button.append(detail);
    button.onclick = () => { fill(entry); generate(); };
    item.append(button);
    return item;
  }));
}

// ---- keys ----

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, input");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate(event);
  else if (event.key === "Escape") { running?.abort(); playing?.pause(); }
  else if (!typing && event.key === "/") { event.preventDefault(); byId("prompt").focus(); }
  else if (!typing && /^[1-9]$/.test(event.key)) results.querySelectorAll(".clip:first-child .play")[event.key - 1]?.click();
});

form.addEventListener("submit", generate);
form.addEventListener("input", showValues);
byId("stop").onclick = () => running?.abort();
byId("key").onchange = loadInfo;
byId("forget").onclick = () => { localStorage.removeItem(HISTORY); showHistory(); };
showValues();
showHistory();
loadInfo();
