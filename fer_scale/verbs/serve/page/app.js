// The page of a fer_scale endpoint: a picture in, its expressions out. No library, nothing from another host.

import { buildBars, showAnswer, showNothing } from "./answer.js";
import { endCamera, liveLoop, setLive, startCamera, takePicture } from "./camera.js";
import { $, make, percent, state } from "./dom.js";
import { ask, complain, predict } from "./endpoint.js";
import { placeBoxes, placeFrame, showSeen, stage } from "./stage.js";

const HISTORY = 24;

const mode = () => document.querySelector("#mode input:checked").value;

async function loadModel() {
  try {
    state.model = await ask("v1/model");
  } catch (problem) {
    complain(problem);
    return;
  }
  const { family, model_id: id, metrics, classes, detection } = state.model;
  const accuracy = typeof metrics?.accuracy === "number" ? ` · ${percent(metrics.accuracy)} of ${metrics.split || "val"} right` : "";
  $("model").replaceChildren(`${family || "model"} `, make("code", "", id), accuracy);
  $("model").hidden = false;
  $("mode").hidden = !detection;
  const wanted = detection ? localStorage.getItem("faces") || "detect" : "crop";
  document.querySelector(`#mode input[value="${wanted}"]`).checked = true;
  buildBars(classes);
}

// --- one picture ---------------------------------------------------------------------------------------------------

function show(item, chosen = 0) {
  state.current = item;
  const picture = $("picture");
  const place = () => {
    if (state.current !== item) return;
    stage("picture");
    picture.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) < 200);
    showItem(item, chosen);
  };
  picture.onload = place;
  picture.onerror = () => {
    if (state.current !== item) return;
    stage("unshown");
    $("unshown").textContent = item.problem ? "No picture to show." : "This browser cannot show the picture; the model can read it.";
    $("seen").hidden = true;
    if (item.faces) showAnswer(item, chosen, false, (at) => show(item, at));
  };
  picture.alt = item.name;
  if (picture.src === item.url && picture.complete && picture.naturalWidth) place();
  else picture.src = item.url;
  if (!item.faces) showNothing();
  $("alert").hidden = true;
  if (item.problem) {
    complain(item.problem);
    $("hint").hidden = true;
  }
  drawStrip();
}

// The answer beside the picture on the stage, and the boxes over it.
function showItem(item, chosen) {
  const { naturalWidth: width, naturalHeight: height } = $("picture");
  const choose = (at) => showItem(item, at);
  item.place = () => {
    const boxed = item.faces?.[0]?.box;
    if (boxed) placeBoxes(item.faces, chosen, width, height, { choose: item.faces.length > 1 ? choose : null });
    else if (!item.faces?.length && mode() === "detect") $("frame").hidden = $("boxes").hidden = true;
    else placeFrame(width, height);
  };
  item.place();
  const face = item.faces?.[chosen];
  if (item.faces) showAnswer(item, chosen, false, choose);
  if (face) showSeen($("picture"), width, height, face.box);
  else $("seen").hidden = true;
}

const summary = ({ faces, problem }) => {
  if (problem) return ["not read", ""];
  if (!faces) return ["…", ""];
  if (!faces.length) return ["no face", ""];
  if (faces.length > 1) return [`${faces.length} faces`, ""];
  return [faces[0].label, `${Math.round(100 * faces[0].confidence)} %`];
};

function drawStrip() {
  $("history").hidden = state.items.length < 1;
  $("strip").replaceChildren(...state.items.map((item) => {
    const entry = make("li");
    const button = make("button");
    button.type = "button";
    button.title = item.name;
    button.setAttribute("aria-current", String(item === state.current));
    button.addEventListener("click", () => {
      stopCamera();
      show(item);
      $("stage").scrollIntoView({ block: "nearest" });
    });
    const image = make("img");
    image.alt = "";
    image.onerror = () => image.replaceWith(make("div", "blank", "?"));
    image.src = item.url;
    const text = make("span");
    const [word, value] = summary(item);
    text.append(make("b", item.problem ? "failed" : "", word), make("i", "", value));
    button.append(image, text);
    entry.append(button);
    return entry;
  }));
}

function remember(file) {
  const item = { name: file.name || "picture", file, url: URL.createObjectURL(file), faces: null, note: "", milliseconds: 0, problem: null };
  state.items.unshift(item);
  for (const old of state.items.splice(HISTORY)) URL.revokeObjectURL(old.url);
  return item;
}

// --- sending -------------------------------------------------------------------------------------------------------

let running = 0;
async function read(files) {
  const items = [...files].map(remember);
  if (!items.length) return;
  stopCamera();
  show(items[0]);
  await answer(items, mode());
}

async function answer(items, faces) {
  running += 1;
  $("busy").hidden = false;
  try {
    if (!state.model) await loadModel();
    if (!state.model) return; // it has been said why
    for (const item of items) {
      // One by one: a picture that cannot be read should not cost the others their answer.
      await answerOne(item, faces);
      if (item === state.current) show(item);
      else drawStrip();
    }
  } finally {
    running -= 1;
    $("busy").hidden = running === 0;
  }
}

async function answerOne(item, faces) {
  item.faces = item.problem = null;
  item.note = "";
  try {
    let answer = await predict(item.file, faces);
    let [result] = answer.results;
    if (result.reason === "too_small") {
      answer = await predict(item.file, "crop");
      [result] = answer.results;
      item.note = "small, so read as one face";
    }
    item.faces = result.faces ?? [result];
    item.milliseconds = answer.milliseconds;
  } catch (problem) {
    item.problem = problem;
  }
}

function stopCamera() {
  if (!state.stream) return;
  endCamera();
  if (state.items.length) show(state.items[0]);
  else {
    stage("empty");
    showNothing();
    $("seen").hidden = true;
  }
}

// --- hands ---------------------------------------------------------------------------------------------------------

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-pressed", String(name === "dark"));
}
const system = matchMedia("(prefers-color-scheme: dark)");
theme(localStorage.getItem("theme") || (system.matches ? "dark" : "light"));
system.addEventListener("change", () => localStorage.getItem("theme") || theme(system.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", name);
  theme(name);
});

$("choose").addEventListener("click", () => $("file").click());
$("stage").addEventListener("click", () => $("stage").dataset.state === "empty" && $("file").click());
$("file").addEventListener("change", () => {
  read($("file").files);
  $("file").value = "";
});
$("mode").addEventListener("change", () => {
  localStorage.setItem("faces", mode());
  if (state.stream) setLive(state.live);
  else if (state.current) answer([state.current], mode());
});
$("whole").addEventListener("click", () => {
  answer([state.current], "crop");
  $("result").focus();
});
$("camera").addEventListener("click", async () => (await startCamera()) && drawStrip());
$("shoot").addEventListener("click", async () => state.stream && read([await takePicture()]));
$("stop").addEventListener("click", stopCamera);
$("live").addEventListener("click", () => {
  setLive(!state.live);
  if (state.live) liveLoop(mode);
});
$("clear").addEventListener("click", () => {
  for (const item of state.items.splice(0)) URL.revokeObjectURL(item.url);
  state.current = null;
  $("alert").hidden = true;
  if (!state.stream) stage("empty");
  $("seen").hidden = true;
  showNothing();
  drawStrip();
  $("choose").focus();
});
if (!navigator.mediaDevices?.getUserMedia) $("camera").hidden = true;

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let depth = 0;
addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  depth += 1;
  $("veil").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  depth = Math.max(0, depth - 1);
  $("veil").hidden = depth === 0;
});
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth = 0;
  $("veil").hidden = true;
  read(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) read(files);
});
addEventListener("resize", () => !state.stream && state.current?.place?.());
addEventListener("keydown", (event) => {
  if ($("token").open) return;
  if (event.key === "Escape") stopCamera();
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || state.stream || !state.items.length || event.altKey || event.ctrlKey || event.metaKey) return;
  if (document.activeElement?.closest?.("#mode")) return; // there the arrows choose
  const next = state.items[state.items.indexOf(state.current) + step];
  if (next) {
    show(next);
    if (document.activeElement?.closest?.("#strip") || document.activeElement === document.body) {
      document.querySelector('#strip [aria-current="true"]')?.focus();
    }
  }
});

loadModel();
