// The page: state, buttons and figures. Pictures, keys and memory are in the other files.

import { Connection, decode } from "./protocol.js";
import { Controls } from "./controls.js";
import { Memory } from "./memory.js";
import { Ask } from "./ask.js";

const $ = (id) => document.getElementById(id);
const screen = $("screen");
const pen = screen.getContext("2d");
const memory = new Memory($("map"), $("context"));
// Longest link: browsers and chats cut longer ones.
const LONGEST_LINK = 8000;
// Changes of the keys that are stored: longer sessions cannot be replayed.
const MOST_RUNS = 100000;

const state = {
  welcome: null,
  image: "",
  actions: [], // runs [action, steps] since the start
  ofStep: new Map(), // step -> action
  pressed: new Map(), // key -> time of a press that no shown frame answers yet
  shown: [], // times of shown frames
  latencies: [],
  steps: [], // latest measured steps
  last: -1,
  acknowledged: -1,
  decoding: 0,
  skipped: null, // newest frame that waits until earlier ones are decoded
  count: 0,
  dropped: 0,
  started: 0, // number of starts: frames of earlier ones are not drawn
};
// For tests and curious people.
window.play = { state, memory };

const connection = new Connection({ message: onMessage, frame: onFrame, closed: onClosed });
window.play.connection = connection;
const controls = new Controls((held) => {
  connection.send("keys", { held });
  const now = performance.now();
  for (const name of held) {
    const applied = effect(state.lastStep ?? -1).includes(name);
    if (!state.pressed.has(name) && !applied) state.pressed.set(name, now);
  }
  light("pressed", held);
});

const ask = new Ask($("ask"), screen, {
  send: (text, frame) => connection.send("ask", text ? { text, frame } : { text }),
  frame: () => state.last,
});

function notice(text, isError = false) {
  $("notice").textContent = text;
  $("notice").classList.toggle("error", isError);
}

function cover(text) {
  $("cover").textContent = text;
  $("cover").classList.toggle("off", !text);
}

function light(name, keys) {
  for (const cap of document.querySelectorAll(".key")) cap.classList.toggle(name, keys.includes(cap.dataset.name));
}

/** Keep the action of a step, which its first frames or the message about it bring. */
function noteAction({ step, action }) {
  state.ofStep.set(step, action);
  state.ofStep.delete(step - 64);
}

/** Keys that the frames of a step show: those of an earlier step for models that answer late. */
function effect(step) {
  const action = state.ofStep.get(step - ((state.welcome?.delay ?? 1) - 1));
  return action && action !== "none" ? action.split("+") : [];
}

const handlers = {
  welcome(message) {
    state.welcome = message;
    controls.setKeys(message.keys);
    $("keys").replaceChildren(...message.keys.map(makeCap));
    $("images").replaceChildren(...message.images.map(makeImage));
    $("memory").hidden = !message.memory;
    $("ask").hidden = !message.questions;
    $("question").maxLength = message.limits.question;
    $("describe").hidden = !message.captions;
    $("steps-row").hidden = message.steps === null;
    $("guidance-row").hidden = message.guidance === null;
    $("steps").max = message.limits.steps;
    $("guidance").max = message.limits.guidance;
    screen.width = message.size[0];
    screen.height = message.size[1];
    begin(message);
    if (message.resumed) notice("connected again: the session continues");
    else followLink();
  },
  seat({ place, playing, waiting }) {
    cover(place ? `All seats are taken. You are number ${place} in the queue of ${waiting}; ${playing} play now.` : "");
  },
  started(message) {
    begin(message);
    notice("");
  },
  state({ paused }) {
    setPaused(paused);
  },
  computed(message) {
    const runs = state.actions;
    if (runs.length && runs[runs.length - 1][0] === message.action) runs[runs.length - 1][1]++;
    else if (runs.length < MOST_RUNS) runs.push([message.action, 1]);
    noteAction(message);
    state.steps.push(message);
    if (state.steps.length > 20) state.steps.shift();
    state.dropped = message.dropped;
    if (message.memory) memory.add(message.step, message.memory);
    // Its first frames can be drawn before this message comes.
    if (message.step <= state.lastStep) memory.show(message.step);
    if (message.seconds.compile > 1) notice(`compiled for ${message.seconds.compile.toFixed(0)} s`);
    figures();
  },
  asked(message) {
    ask.begin(message);
  },
  answer(message) {
    ask.add(message);
  },
  image({ size }) {
    notice(`your image of ${size[0]}x${size[1]} pixels begins the next start`);
    choose("own");
    reset();
  },
  recording(message) {
    $("record").classList.toggle("on", message.on);
    $("record").textContent = message.on ? "stop" : "record";
    if (!message.on) {
      link(`recordings/${message.name}.mp4`, `${message.name}.mp4`, ` (${message.frames} frames)`);
      notice(`${message.content} at ${message.path}`);
    }
  },
  log({ content }) {
    download(new Blob([JSON.stringify(content)], { type: "application/json" }), `keys-${content.start.seed}.json`);
  },
  notice({ text }) {
    notice(text);
  },
  error({ text }) {
    notice(text, true);
  },
};

function onMessage(message) {
  handlers[message.type]?.(message);
}

function onClosed(reason) {
  setPaused(false);
  ask.end();
  cover(reason ? `disconnected: ${reason}` : "connecting");
}

function begin({ start, paused }) {
  Object.assign(state, { actions: [], last: -1, acknowledged: -1, lastStep: -1, image: start.image, start, count: 0 });
  state.started++;
  state.ofStep.clear();
  state.pressed.clear();
  memory.clear();
  $("prompt").value = start.prompt;
  $("seed").value = start.seed;
  $("steps").value = start.steps ?? state.welcome.steps ?? 1;
  $("guidance").value = start.guidance ?? state.welcome.guidance ?? 1;
  showSliders();
  choose(start.image);
  setPaused(paused);
}

function setPaused(paused) {
  state.paused = paused;
  $("pause").textContent = paused ? "play" : "pause";
  $("pause").classList.toggle("on", paused);
}

async function onFrame(frame) {
  const started = state.started;
  noteAction(frame);
  if (state.decoding > 4) {
    // Of the frames that a slow page cannot draw, it draws the newest.
    state.skipped = frame;
    return;
  }
  state.decoding++;
  try {
    const image = await decode(frame);
    if (started !== state.started || frame.frame <= state.last) return;
    pen.drawImage(image, 0, 0);
    image.close();
    drawn(frame);
  } finally {
    state.decoding--;
    const { skipped } = state;
    state.skipped = null;
    if (skipped && started === state.started) onFrame(skipped);
  }
}

function drawn(frame) {
  const now = performance.now();
  const isNew = state.lastStep !== frame.step;
  state.last = frame.frame;
  state.lastStep = frame.step;
  state.count++;
  state.shown.push(now);
  while (state.shown[0] < now - 3000) state.shown.shift();
  const keys = effect(frame.step);
  light("applied", keys);
  for (const key of keys) {
    if (!state.pressed.has(key)) continue;
    state.latencies.push(now - state.pressed.get(key));
    if (state.latencies.length > 200) state.latencies.shift();
    state.pressed.delete(key);
  }
  if (state.welcome.memory) {
    if (isNew) memory.show(frame.step);
    memory.keep(frame, screen);
  }
}

// What is shown is reported: the server stops if a page does not keep up.
setInterval(() => {
  if (state.last === state.acknowledged) return;
  state.acknowledged = state.last;
  connection.send("shown", { frame: state.last });
}, 60);

function percentile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function figures() {
  const measured = state.steps.filter((step) => !step.seconds.compile);
  if (!measured.length) return;
  const mean = (name) => measured.reduce((sum, step) => sum + step.seconds[name], 0) / measured.length;
  const milliseconds = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
  for (const name of ["denoise", "decode", "send"]) $(name).textContent = milliseconds(mean(name));
  const frames = measured.reduce((sum, step) => sum + step.frames, 0) / measured.length;
  $("model-rate").textContent = `${(frames / (mean("denoise") + mean("decode"))).toFixed(0)} frames/s`;
  const span = (performance.now() - state.shown[0]) / 1000;
  if (span > 0.5) $("shown-rate").textContent = `${(state.shown.length / span).toFixed(1)} of ${state.welcome.fps} frames/s`;
  if (state.latencies.length) {
    $("latency").textContent = `${percentile(state.latencies, 0.5).toFixed(0)} ms (p95 ${percentile(state.latencies, 0.95).toFixed(0)})`;
  }
  const { format, bytes, frames: count } = measured[measured.length - 1];
  $("frames").textContent = `${state.count}, ${state.dropped} dropped, ${format} ${(bytes / count / 1000).toFixed(1)} kB`;
}

function makeCap(key) {
  const cap = document.createElement("button");
  cap.className = "key";
  cap.dataset.name = key.name;
  const codes = key.codes.map((code) => code.replace("Key", "").replace(/^Arrow(.)(.*)/, (_, first) => ({ U: "↑", D: "↓", L: "←", R: "→" })[first]));
  cap.textContent = codes.join(" ");
  const label = document.createElement("small");
  label.textContent = key.label;
  cap.append(label);
  cap.addEventListener("pointerdown", (event) => {
    cap.setPointerCapture(event.pointerId);
    controls.press("caps", key.name, true);
  });
  for (const name of ["pointerup", "pointercancel"]) cap.addEventListener(name, () => controls.press("caps", key.name, false));
  return cap;
}

function makeImage({ name, caption }) {
  const image = document.createElement("img");
  image.src = `images/${name}.png`;
  image.alt = image.title = caption || name;
  image.dataset.name = name;
  image.onclick = () => {
    choose(name);
    if (caption) $("prompt").value = caption;
    reset();
  };
  return image;
}

function choose(name) {
  state.chosen = name;
  for (const image of document.querySelectorAll("#images img")) image.classList.toggle("chosen", image.dataset.name === name);
}

function settings() {
  const { welcome } = state;
  const values = { image: state.chosen, prompt: $("prompt").value, seed: Number($("seed").value) };
  if (welcome.steps !== null) values.steps = Number($("steps").value);
  if (welcome.guidance !== null) values.guidance = Number($("guidance").value);
  return values;
}

function reset(script) {
  connection.send("reset", script ? { ...settings(), script } : settings());
  screen.focus();
}

function showSliders() {
  for (const name of ["steps", "guidance"]) $(`${name}-value`).textContent = $(name).value;
}

function followLink() {
  const text = new URLSearchParams(location.hash.slice(1)).get("play");
  if (!text) return;
  try {
    const values = JSON.parse(text);
    const { model, ...start } = values;
    connection.send("reset", start);
    if (model !== state.welcome.model) notice("the link was made with other weights: it replays the keys, not the same pictures");
  } catch {
    notice("the link is damaged: nothing is replayed", true);
  }
}

function share() {
  if (state.image === "own") {
    notice("a link cannot hold your own image: save the key log, which does", true);
    return;
  }
  const values = { ...state.start, script: state.actions, model: state.welcome.model };
  const hash = new URLSearchParams({ play: JSON.stringify(values) }).toString();
  if (hash.length > LONGEST_LINK) {
    notice("the session is too long for a link: save the key log", true);
    return;
  }
  history.replaceState(null, "", `#${hash}`);
  navigator.clipboard?.writeText(location.href).then(
    () => notice("the link is in the clipboard; it replays these keys with this model"),
    () => notice("the link is in the address bar; it replays these keys with this model"),
  );
}

function download(blob, name) {
  const anchor = link(URL.createObjectURL(blob), name);
  anchor.click();
}

function link(address, name, note = "") {
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = name;
  anchor.textContent = name + note;
  $("files").prepend(anchor);
  while ($("files").children.length > 5) $("files").lastChild.remove();
  return anchor;
}

async function upload(file) {
  if (!file) return;
  if (file.size > state.welcome.limits.image) {
    notice(`the image has ${file.size} bytes, at most ${state.welcome.limits.image} are taken`, true);
    return;
  }
  connection.sendImage(await file.arrayBuffer());
}

$("pause").onclick = () => connection.send("pause", { on: !state.paused });
$("step").onclick = () => {
  if (!state.paused) connection.send("pause", { on: true });
  connection.send("step");
};
$("reset").onclick = () => reset();
$("replay").onclick = () => {
  if (!state.actions.length) notice("nothing was played yet");
  else if (state.actions.length >= MOST_RUNS) notice("the session is too long for a replay: save the key log", true);
  else reset(state.actions);
};
$("record").onclick = () => connection.send("record", { on: !$("record").classList.contains("on") });
$("shot").onclick = () => screen.toBlob((blob) => download(blob, `frame-${state.last}.png`));
$("log").onclick = () => connection.send("log");
$("share").onclick = share;
$("describe").onclick = () => connection.send("prompt", { text: $("prompt").value });
for (const name of ["steps", "guidance"]) $(name).oninput = showSliders;
$("file").onchange = ({ target }) => upload(target.files[0]).then(() => (target.value = ""));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("drop", name === "dragover");
    if (name === "drop") upload(event.dataTransfer.files[0]);
  });
}
window.addEventListener("keydown", (event) => {
  if (/^(TEXTAREA|INPUT)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey) return;
  const button = { KeyP: "pause", KeyO: "step", Backspace: "reset" }[event.code];
  if (button && !state.welcome?.keys.some((key) => key.codes.includes(event.code))) $(button).click();
});
setInterval(() => state.welcome && figures(), 500);
