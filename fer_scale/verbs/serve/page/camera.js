// The camera: a live picture that is read again and again, or taken once.

import { showAnswer, showNothing } from "./answer.js";
import { $, make, state } from "./dom.js";
import { complain, predict } from "./endpoint.js";
import { placeBoxes, placeFrame, showSeen, stage } from "./stage.js";

const PAUSE_MS = 120;
const LIVE_SIDE = { crop: 256, detect: 640 }; // pixels that are sent

export async function startCamera() {
  $("alert").hidden = true;
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: { ideal: 960 } } });
  } catch (error) {
    const denied = error instanceof DOMException && error.name === "NotAllowedError";
    $("alert").textContent = denied
      ? "The browser keeps the camera to itself. Allow it for this page, or choose a picture."
      : "There is no camera here that the browser can use. Choose a picture instead.";
    $("alert").hidden = false;
    return false;
  }
  state.current = null;
  $("video").srcObject = state.stream;
  await $("video").play();
  stage("camera");
  $("seen").hidden = true;
  showNothing();
  $("shoot").focus();
  return true;
}

export function endCamera() {
  for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  setLive(false);
  $("video").srcObject = null;
}

// What of the camera's picture can be seen on the stage, at most `side` pixels: nothing else is sent.
function grab(side) {
  const video = $("video");
  const { clientWidth, clientHeight } = $("stage");
  const scale = Math.max(clientWidth / video.videoWidth, clientHeight / video.videoHeight);
  const [width, height] = [clientWidth / scale, clientHeight / scale];
  const canvas = make("canvas");
  const shrink = Math.min(1, side / Math.max(width, height));
  canvas.width = Math.round(width * shrink);
  canvas.height = Math.round(height * shrink);
  const [x, y] = [(video.videoWidth - width) / 2, (video.videoHeight - height) / 2];
  canvas.getContext("2d").drawImage(video, x, y, width, height, 0, 0, canvas.width, canvas.height);
  return canvas;
}

const encoded = (canvas, quality) => new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));

export async function takePicture() {
  const blob = await encoded(grab(1280), 0.92);
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}

export function setLive(live) {
  state.live = live;
  $("live").setAttribute("aria-pressed", String(live));
  if (!live) $("boxes").hidden = $("frame").hidden = true;
}

let turn = 0; // of the last loop: one that was switched off and waits for an answer ends, too

export async function liveLoop(mode) {
  const mine = ++turn;
  while (mine === turn && state.live && state.stream) {
    try {
      const faces = mode();
      const canvas = grab(LIVE_SIDE[faces]);
      const answer = await predict(await encoded(canvas, 0.85), faces);
      if (mine !== turn || !state.live || !state.stream) return;
      $("alert").hidden = true;
      showLive(answer, faces, canvas);
    } catch (problem) {
      complain(problem);
    }
    await new Promise((done) => setTimeout(done, PAUSE_MS));
  }
}

function showLive({ results: [result], milliseconds }, mode, canvas) {
  const { width, height } = canvas;
  const faces = mode === "detect" ? result.faces : [result];
  showAnswer({ faces, milliseconds, note: "" }, 0, true, null);
  if (mode === "detect") placeBoxes(faces, 0, width, height, { mirrored: true });
  else placeFrame(width, height);
  if (faces.length) showSeen(canvas, width, height, faces[0].box, true);
  else $("seen").hidden = true;
}
