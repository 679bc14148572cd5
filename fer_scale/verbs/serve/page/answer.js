// The answer: whose face, what it shows, how sure that is, and all the bars.

import { $, make, percent, state, tone } from "./dom.js";
import { cutOut } from "./stage.js";

const GLYPHS = {
  happy: "M22 25v3M42 25v3M19 37c6 11 20 11 26 0",
  sad: "M22 26v3M42 26v3M20 46c6-9 18-9 24 0",
  surprised: "M22 23v3M42 23v3M32 37a5.5 6.5 0 1 0 .01 0z",
  neutral: "M22 25v3M42 25v3M21 42h22",
  angry: "M17 21l9 5M47 21l-9 5M23 29v2M41 29v2M21 45c6-6 16-6 22 0",
  fear: "M22 23v4M42 23v4M20 44q4-6 8 0t8 0t8 0",
  disgust: "M19 26l6 2M45 26l-6 2M20 44c5-5 9 2 13-2s7-3 11-1",
};
GLYPHS.surprise = GLYPHS.surprised;
GLYPHS.happiness = GLYPHS.happy;
GLYPHS.sadness = GLYPHS.sad;
GLYPHS.anger = GLYPHS.angry;

const judged = (face) => (face.accepted === undefined ? "" : face.accepted ? "sure" : "for review");
const spoken = (face) => [face.label, `${Math.round(100 * face.confidence)} percent`, judged(face)].filter(Boolean).join(", ");

export function buildBars(classes) {
  $("bars").replaceChildren(...classes.map((name) => {
    const row = make("li");
    row.dataset.name = name;
    row.style.setProperty("--tone", tone(name));
    const track = make("span", "track");
    track.append(make("span", "fill"));
    row.append(make("span", "", name), make("span", "value", "–"), track);
    return row;
  }));
}

function showBars(face, live) {
  $("bars").classList.toggle("live", live);
  for (const row of $("bars").children) {
    const p = face?.probabilities[row.dataset.name] ?? 0;
    row.classList.toggle("top", row.dataset.name === face?.label);
    row.querySelector(".value").textContent = face ? percent(p) : "–";
    row.querySelector(".fill").style.transform = `translateX(${100 * (p - 1)}%)`;
  }
}

let announced = "";
function announce(text, live) {
  if (live && announced === text.replace(/\d+ percent/g, "")) return; // the same again is no news
  announced = text.replace(/\d+ percent/g, "");
  $("live-region").textContent = text;
}

// What there is to say before there is an answer, or where it is being waited for.
export function showNothing() {
  $("hint").hidden = false;
  for (const id of ["answer", "none", "faces"]) $(id).hidden = true;
  showBars(null, false);
}

// `answer`: {faces: [...], note, milliseconds}; `chosen` of its faces is the one that the bars are of.
export function showAnswer(answer, chosen, live, choose) {
  const { faces, note, milliseconds } = answer;
  const face = faces[chosen];
  $("hint").hidden = true;
  $("answer").hidden = !face;
  $("none").hidden = Boolean(face);
  $("whole").hidden = live;
  showBars(face, live);
  showFaces(faces, chosen, live, choose);
  if (!face) {
    announce("No face found", live);
    return;
  }
  const sorted = Object.values(face.probabilities).sort((a, b) => b - a);
  const close = sorted.length > 1 && sorted[0] - sorted[1] < 0.15;
  const which = faces.length > 1 ? `face ${chosen + 1} of ${faces.length}` : close ? "a close call" : "most likely";
  $("kicker").textContent = live ? (faces.length > 1 ? `right now, ${faces.length} faces` : "right now") : which;
  $("label").textContent = face.label;
  $("confidence").textContent = `with a probability of ${percent(face.confidence)}`;
  $("took").textContent = [note, `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`].filter(Boolean).join(" · ");
  const glyph = GLYPHS[face.label.toLowerCase()];
  $("glyph").toggleAttribute("hidden", !glyph);
  if (glyph) $("glyph-face").setAttribute("d", glyph);
  $("answer").style.setProperty("--tone", tone(face.label));
  $("judged").hidden = face.accepted === undefined;
  $("judged").className = face.accepted ? "judged" : "judged review";
  $("judged-word").textContent = judged(face);
  $("judged-why").textContent = face.accepted
    ? `Of what is marked sure, at most ${+(100 * state.model.max_error).toFixed(2)} % should be wrong.`
    : "Not sure enough to go unseen: a person should look.";
  announce((live ? faces : [face]).map(spoken).join("; "), live);
}

function showFaces(faces, chosen, live, choose) {
  const focused = document.activeElement?.closest?.("#faces") !== null;
  $("faces").hidden = live || faces.length < 2;
  if ($("faces").hidden) return;
  $("faces").replaceChildren(...faces.map((face, at) => {
    const entry = make("li");
    const button = make("button", face.accepted === false ? "review" : "");
    button.type = "button";
    button.style.setProperty("--tone", tone(face.label));
    button.setAttribute("aria-label", `Face ${at + 1} of ${faces.length}: ${spoken(face)}`);
    button.setAttribute("aria-pressed", String(at === chosen));
    button.append(cutOut(face.box), make("b", "", face.label), make("i", "", `${Math.round(100 * face.confidence)} %`));
    button.addEventListener("click", () => choose(at));
    entry.append(button);
    return entry;
  }));
  if (focused) $("faces").children[chosen].firstChild.focus();
}
