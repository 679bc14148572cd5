// The page of a fer_scale endpoint: a picture in, its expression out. No library, nothing from another host.

const $ = (id) => document.getElementById(id);
const HISTORY = 24;
const LIVE_PAUSE_MS = 250;
const TONES = 8;
const FACES = {
  happy: "M22 25v3M42 25v3M19 37c6 11 20 11 26 0",
  sad: "M22 26v3M42 26v3M20 46c6-9 18-9 24 0",
  surprised: "M22 23v3M42 23v3M32 37a5.5 6.5 0 1 0 .01 0z",
  neutral: "M22 25v3M42 25v3M21 42h22",
  angry: "M17 21l9 5M47 21l-9 5M23 29v2M41 29v2M21 45c6-6 16-6 22 0",
  fear: "M22 23v4M42 23v4M20 44q4-6 8 0t8 0t8 0",
  disgust: "M19 26l6 2M45 26l-6 2M20 44c5-5 9 2 13-2s7-3 11-1",
};
FACES.surprise = FACES.surprised;
FACES.happiness = FACES.happy;
FACES.sadness = FACES.sad;
FACES.anger = FACES.angry;

const state = { model: null, items: [], current: null, stream: null, live: false, nextId: 1 };

// --- words ---------------------------------------------------------------------------------------------------------

const percent = (p) => `${(100 * p).toFixed(p > 0.9995 || p < 0.0005 ? 0 : 1)} %`;
const megabytes = (n) => `${(n / 2 ** 20).toFixed(n % 2 ** 20 ? 1 : 0)} MB`;

function kindly(problem) {
  const kind = (problem.type || "").split(":").pop();
  const limits = state.model?.limits;
  switch (kind) {
    case "image-unreadable":
      return "That is not a picture the model can read. JPEG, PNG, WebP, GIF, BMP and TIFF work.";
    case "image-too-large":
      return "That picture has too many pixels. A smaller copy of it will do: the model looks at a small one anyway.";
    case "body-too-large":
      return limits ? `That is more than ${megabytes(limits.max_bytes)}. A smaller copy of it will do.` : "That file is too large.";
    case "empty":
      return "That file is empty.";
    case "overloaded":
    case "timeout":
    case "unavailable":
      return "The endpoint has its hands full. Try again in a moment.";
    case "token":
      return "The endpoint did not take that token.";
    case "unreachable":
      return "The endpoint does not answer. It may be starting, or it was stopped.";
    default:
      return "The endpoint could not answer that.";
  }
}

function complain(problem) {
  $("alert").replaceChildren(kindly(problem));
  if (problem.detail) {
    const small = document.createElement("small");
    small.textContent = problem.detail;
    $("alert").append(small);
  }
  $("alert").hidden = false;
}

// --- asking the endpoint -------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    const token = sessionStorage.getItem("token");
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw { type: "urn:fer-scale:problem:unreachable" };
    }
    if (response.ok) return response.json();
    const problem = await response.json().catch(() => ({ detail: `${response.status} ${response.statusText}` }));
    if (response.status === 401 && (await askForToken())) continue;
    if (response.status === 503 && attempt < 2) {
      await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      continue;
    }
    throw problem;
  }
}

let asking = null;
function askForToken() {
  asking ??= new Promise((done) => {
    const dialog = $("token");
    $("token-value").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const value = $("token-value").value.trim();
      const use = dialog.returnValue === "ok" && value !== "";
      if (use) sessionStorage.setItem("token", value);
      asking = null;
      done(use);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function loadModel() {
  try {
    state.model = await ask("v1/model");
  } catch (problem) {
    complain(problem);
    return;
  }
  const { family, model_id: id, metrics, preprocessing, classes } = state.model;
  const accuracy = typeof metrics?.accuracy === "number" ? ` · ${percent(metrics.accuracy)} of ${metrics.split || "val"} right` : "";
  const code = document.createElement("code");
  code.textContent = id;
  $("model").replaceChildren(`${family || "model"} `, code, accuracy);
  $("model").hidden = false;
  $("seen-text").textContent = `${preprocessing.size} × ${preprocessing.size} pixels, ${preprocessing.channels === 1 ? "gray" : "in colour"}, from the middle of the picture`;
  buildBars(classes);
}

// --- the answer ----------------------------------------------------------------------------------------------------

const tone = (name) => `var(--c${Math.max(0, state.model.classes.indexOf(name)) % TONES})`;

function buildBars(classes) {
  $("bars").replaceChildren(...classes.map((name) => {
    const row = document.createElement("li");
    row.dataset.name = name;
    row.style.setProperty("--tone", tone(name));
    const [word, value, track, fill] = ["span", "span", "span", "span"].map((tag) => document.createElement(tag));
    word.textContent = name;
    value.className = "value";
    value.textContent = "–";
    track.className = "track";
    fill.className = "fill";
    track.append(fill);
    row.append(word, value, track);
    return row;
  }));
}

let announced = "";
function showResult(result, live = false) {
  const known = result !== null;
  $("hint").hidden = known;
  $("answer").hidden = !known;
  $("bars").classList.toggle("live", live);
  for (const row of $("bars").children) {
    const p = known ? result.probabilities[row.dataset.name] ?? 0 : 0;
    row.classList.toggle("top", known && row.dataset.name === result.label);
    row.querySelector(".value").textContent = known ? percent(p) : "–";
    row.querySelector(".fill").style.transform = `translateX(${100 * (p - 1)}%)`;
  }
  if (!known) return;
  const sorted = Object.values(result.probabilities).sort((a, b) => b - a);
  const close = sorted.length > 1 && sorted[0] - sorted[1] < 0.15;
  $("kicker").textContent = live ? "right now" : close ? "a close call" : "most likely";
  $("label").textContent = result.label;
  $("confidence").textContent = `with a probability of ${percent(result.confidence)}`;
  const face = FACES[result.label.toLowerCase()];
  $("glyph").toggleAttribute("hidden", !face);
  if (face) $("glyph-face").setAttribute("d", face);
  $("answer").style.setProperty("--tone", tone(result.label));
  if (!live || announced !== result.label) {
    announced = result.label;
    $("live-region").textContent = `${result.label}, ${Math.round(100 * result.confidence)} percent`;
  }
}

// --- the stage -----------------------------------------------------------------------------------------------------

function stage(name) {
  $("stage").dataset.state = name;
  $("picture").hidden = name !== "picture";
  $("frame").hidden = true;
  $("unshown").hidden = name !== "unshown";
  $("video").hidden = name !== "camera";
  $("idle-actions").hidden = name === "camera";
  $("camera-actions").hidden = name !== "camera";
  document.querySelector(".empty").hidden = name !== "empty";
}

function placeFrame() {
  const picture = $("picture");
  const { naturalWidth: w, naturalHeight: h } = picture;
  const square = !w || Math.abs(w - h) < 2;
  $("frame").hidden = square || picture.hidden;
  if (square) return;
  const { clientWidth, clientHeight } = $("stage");
  const scale = Math.min(clientWidth / w, clientHeight / h);
  Object.assign($("frame").style, { width: `${w * scale}px`, height: `${h * scale}px` });
}

function showSeen(source, width, height, mirrored = false) {
  const canvas = $("input");
  const { size, channels } = state.model.preprocessing;
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.filter = channels === 1 ? "grayscale(1)" : "none";
  const side = Math.min(width, height);
  if (mirrored) context.setTransform(-1, 0, 0, 1, size, 0);
  context.drawImage(source, (width - side) / 2, (height - side) / 2, side, side, 0, 0, size, size);
  $("seen").hidden = false;
}

function show(item) {
  state.current = item;
  const picture = $("picture");
  picture.onload = () => {
    if (state.current !== item) return;
    stage("picture");
    picture.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) < 200);
    placeFrame();
    if (state.model) showSeen(picture, picture.naturalWidth, picture.naturalHeight);
  };
  picture.onerror = () => {
    if (state.current !== item) return;
    stage("unshown");
    $("unshown").textContent = item.problem ? "No picture to show." : "This browser cannot show the picture; the model can read it.";
    $("seen").hidden = true;
  };
  picture.alt = item.name;
  picture.src = item.url;
  showResult(item.result);
  $("alert").hidden = true;
  if (item.problem) {
    complain(item.problem);
    $("hint").hidden = true;
  }
  drawStrip();
}

// --- the history ---------------------------------------------------------------------------------------------------

function drawStrip() {
  $("history").hidden = state.items.length < 1;
  $("strip").replaceChildren(...state.items.map((item) => {
    const entry = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-current", String(item === state.current));
    button.addEventListener("click", () => {
      stopCamera();
      show(item);
    });
    const image = document.createElement("img");
    image.alt = "";
    image.onerror = () => {
      const blank = document.createElement("div");
      blank.className = "blank";
      blank.textContent = "?";
      image.replaceWith(blank);
    };
    image.src = item.url;
    const text = document.createElement("span");
    const [word, value] = [document.createElement("b"), document.createElement("i")];
    word.textContent = item.result?.label ?? (item.problem ? "not read" : "…");
    word.classList.toggle("failed", Boolean(item.problem));
    value.textContent = item.result ? `${Math.round(100 * item.result.confidence)} %` : "";
    text.append(word, value);
    button.title = item.name;
    button.append(image, text);
    entry.append(button);
    return entry;
  }));
}

function remember(file) {
  const item = { id: state.nextId, name: file.name || "picture", file, url: URL.createObjectURL(file), result: null, problem: null };
  state.nextId += 1;
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
  running += 1;
  $("busy").hidden = false;
  try {
    if (!state.model) await loadModel();
    for (const item of items) {
      // One by one: a picture that cannot be read should not cost the others their answer.
      try {
        const answer = await ask("v1/predict", { method: "POST", body: item.file, headers: { "Content-Type": item.file.type.startsWith("image/") ? item.file.type : "application/octet-stream" } });
        item.result = answer.results[0];
      } catch (problem) {
        item.problem = problem;
      }
      item.file = null;
      if (item === state.current) show(item);
      else drawStrip();
    }
  } finally {
    running -= 1;
    $("busy").hidden = running === 0;
  }
}

// --- the camera ----------------------------------------------------------------------------------------------------

async function startCamera() {
  $("alert").hidden = true;
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: { ideal: 640 } } });
  } catch (error) {
    const denied = error instanceof DOMException && error.name === "NotAllowedError";
    $("alert").textContent = denied
      ? "The browser keeps the camera to itself. Allow it for this page, or choose a picture."
      : "There is no camera here that the browser can use. Choose a picture instead.";
    $("alert").hidden = false;
    return;
  }
  state.current = null;
  $("video").srcObject = state.stream;
  await $("video").play();
  stage("camera");
  $("seen").hidden = true;
  showResult(null);
  drawStrip();
  $("shoot").focus();
}

function stopCamera() {
  if (!state.stream) return;
  for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  state.live = false;
  $("live").setAttribute("aria-pressed", "false");
  $("video").srcObject = null;
  if (state.items.length) show(state.items[0]);
  else {
    stage("empty");
    showResult(null);
    $("seen").hidden = true;
  }
}

function grab(side) {
  const video = $("video");
  const { videoWidth: w, videoHeight: h } = video;
  const canvas = document.createElement("canvas");
  const cut = Math.min(w, h);
  canvas.width = canvas.height = Math.min(side, cut);
  canvas.getContext("2d").drawImage(video, (w - cut) / 2, (h - cut) / 2, cut, cut, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

async function shoot() {
  if (!state.stream) return;
  const blob = await grab(1024);
  read([new File([blob], "camera.jpg", { type: "image/jpeg" })]);
}

async function liveLoop() {
  while (state.live && state.stream) {
    const video = $("video");
    try {
      const blob = await grab(256);
      const answer = await ask("v1/predict", { method: "POST", body: blob, headers: { "Content-Type": "image/jpeg" } });
      if (!state.live || !state.stream) return;
      $("alert").hidden = true;
      showResult(answer.results[0], true);
      showSeen(video, video.videoWidth, video.videoHeight);
    } catch (problem) {
      complain(problem);
    }
    await new Promise((done) => setTimeout(done, LIVE_PAUSE_MS));
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
$("camera").addEventListener("click", startCamera);
$("shoot").addEventListener("click", shoot);
$("stop").addEventListener("click", stopCamera);
$("live").addEventListener("click", () => {
  state.live = !state.live;
  $("live").setAttribute("aria-pressed", String(state.live));
  if (state.live) liveLoop();
});
$("clear").addEventListener("click", () => {
  for (const item of state.items.splice(0)) URL.revokeObjectURL(item.url);
  state.current = null;
  $("alert").hidden = true;
  if (!state.stream) stage("empty");
  $("seen").hidden = true;
  showResult(null);
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
addEventListener("resize", placeFrame);
addEventListener("keydown", (event) => {
  if ($("token").open) return;
  if (event.key === "Escape") stopCamera();
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || state.stream || !state.items.length || event.altKey || event.ctrlKey || event.metaKey) return;
  const next = state.items[state.items.indexOf(state.current) + step];
  if (next) {
    show(next);
    if (document.activeElement?.closest?.("#strip") || document.activeElement === document.body) {
      document.querySelector('#strip [aria-current="true"]')?.focus();
    }
  }
});

loadModel();
