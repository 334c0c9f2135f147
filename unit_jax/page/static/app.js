"use strict";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const LEAST = 480;  // pixels that a small picture is shown at

let model = null, task = null, asked = 0;
let picture = null;  // {blob, image}
let found = null;    // the last answer
let heat = null;     // attention over the picture
let chosen = null;   // the box whose attention is shown
let words = [];      // [{word, effect, left}] of the last question
let question = "";   // the text that these are of

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function color(id, alpha = 1) {
  return `hsla(${Math.round(360 * ((id * 0.618034) % 1))}, 70%, 42%, ${alpha})`;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

async function ask(path, fields) {
  const form = new FormData();
  form.append("task", task.name);
  if (task.inputs.includes("image")) {
    if (!picture) throw new Error("choose a picture first");
    if (picture.blob.size > model.limits.upload_bytes)
      throw new Error(`the picture is larger than ${model.limits.upload_bytes / 1e6} MB`);
    form.append("image", picture.blob, "picture");
  }
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  let response;
  try {
    response = await fetch(path, { method: "POST", body: form });
  } catch {
    throw new Error("the server does not answer; is unit-jax app still running?");
  }
  const said = await response.json().catch(() => ({ error: `the server failed (${response.status})` }));
  if (said.error) throw new Error(said.error);
  return said;
}

function texts() {
  if (!task.inputs.includes("text")) return {};
  const fields = { text: $("text").value };
  if (!task.inputs.includes("image")) fields.text_b = $("text_b").value;
  return fields;
}

async function run(fields = texts(), fresh = true) {
  const number = ++asked;
  fail("");
  $("ask").disabled = true;
  $("note").textContent = "thinking ... (the first question of a kind takes a few seconds)";
  try {
    const said = await ask("/api/predict", fields);
    if (number !== asked) return;  // a later question was asked meanwhile
    found = said;
    heat = chosen = null;
    if (fresh) { words = []; question = fields.text || ""; }
    $("note").textContent = `${said.milliseconds} ms`;
    show();
    if (said.answers) await explain(fields, fresh, number);
  } catch (error) {
    if (number === asked) { found = null; show(); fail(error.message); $("note").textContent = ""; }
  } finally {
    if (number === asked) $("ask").disabled = false;
  }
}

async function explain(fields, fresh, number) {
  const told = await ask("/api/explain", fields);
  if (number !== asked) return;
  heat = told.attention || null;
  if (fresh) words = (told.words || []).map((one) => ({ ...one, left: false }));
  show();
}

async function lookAt(fields, box) {
  fail("");
  try {
    const told = await ask("/api/explain", { ...texts(), ...fields });
    heat = told.attention;
    chosen = box;
    show();
  } catch (error) { fail(error.message); }
}

function shown() {
  const least = Number($("threshold").value);
  return ((found && found.detections) || []).filter((one) => one.score >= least);
}

function show() {
  const boxes = shown(), isObjects = task.output === "objects";
  draw(boxes);
  $("clear").hidden = !heat;
  $("threshold-label").hidden = !isObjects;
  $("answers").replaceChildren(...(isObjects ? boxes.map(boxLine) : answerLines()));
  if (found && isObjects) {
    $("note").textContent = boxes.length
      ? `${boxes.length} of ${found.detections.length} objects above the threshold; click one, ` +
        "or a point of the picture, to see what it looks at"
      : "nothing above the threshold";
  }
  $("words").replaceChildren(...words.map(wordButton));
  if (words.length && found && found.answers) {
    $("note").textContent = `${found.milliseconds} ms; blue words raise the score, red ones lower ` +
      "it; click a word to leave it out";
  }
}

function line(name, score, swatch) {
  const row = element("div", "", { class: "answer" });
  const label = element("span", name);
  if (swatch) {
    const mark = element("span", "", { class: "swatch" });
    mark.style.background = swatch;
    label.prepend(mark);
  }
  const track = element("div", "", { class: "track" }), bar = element("div", "", { class: "bar" });
  bar.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
  if (swatch) bar.style.background = swatch;
  track.append(bar);
  row.append(label, track, element("span", score.toFixed(2), { class: "score" }));
  return row;
}

function boxLine(one) {
  const name = one.attribute ? `${one.attribute} ${one.label}` : one.label;
  const row = line(name, one.score, color(one.label_id));
  row.classList.add("box");
  row.tabIndex = 0;
  const look = () => lookAt({ query: one.query }, one);
  row.addEventListener("click", look);
  row.addEventListener("keydown", (event) => { if (event.key === "Enter") look(); });
  return row;
}

function answerLines() {
  return ((found && found.answers) || []).map((one) => line(one.label, one.score));
}

function wordButton(one, position) {
  const button = element("button", one.word, { type: "button" });
  const most = Math.max(...words.map((w) => Math.abs(w.effect)), 0.05);
  const share = Math.abs(one.effect) / most * 0.75;
  button.style.background = one.effect >= 0 ? `rgba(47,111,222,${share})` : `rgba(200,67,58,${share})`;
  if (share > 0.5) button.style.color = "white";
  button.title = `score without it: ${one.effect >= 0 ? "-" : "+"}${Math.abs(one.effect).toFixed(2)}`;
  if (one.left) button.classList.add("left");
  button.addEventListener("click", () => {
    words[position].left = !one.left;
    const count = question.trim().split(/\s+/).length;
    const kept = (from, to) => words.slice(from, to).filter((w) => !w.left).map((w) => w.word).join(" ");
    const fields = { ...texts(), text: kept(0, count) };
    if ("text_b" in fields) fields.text_b = kept(count);
    run(fields, false);
  });
  return button;
}

function draw(boxes) {
  if (!picture) return;
  const image = picture.image;
  const scale = Math.max(1, Math.ceil(LEAST / image.width));
  canvas.width = image.width * scale;
  canvas.height = image.height * scale;
  // As large as there is room for, small pictures too.
  const room = Math.min($("stage").clientWidth / image.width, 0.62 * innerHeight / image.height);
  canvas.style.width = `${Math.round(image.width * room)}px`;
  pen.imageSmoothingEnabled = true;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (heat && task.inputs.includes("image")) drawHeat();
  if (!task.inputs.includes("image")) return;
  const size = Math.max(12, canvas.width / 38), wide = Math.max(2, canvas.width / 220);
  const kx = canvas.width / (found?.width || image.width), ky = canvas.height / (found?.height || image.height);
  pen.font = `600 ${size}px system-ui, sans-serif`;
  for (const one of [...boxes].reverse()) {
    const [x0, y0, x1, y1] = one.box_xyxy;
    const faint = chosen && chosen !== one;
    pen.strokeStyle = pen.fillStyle = color(one.label_id, faint ? 0.35 : 1);
    pen.lineWidth = wide;
    pen.strokeRect(x0 * kx, y0 * ky, (x1 - x0) * kx, (y1 - y0) * ky);
    if (faint) continue;
    const name = `${one.attribute ? one.attribute + " " : ""}${one.label} ${one.score.toFixed(2)}`;
    const width = pen.measureText(name).width + size * 0.7, height = size * 1.45;
    const x = Math.max(0, Math.min(x0 * kx - wide / 2, canvas.width - width));
    const y = y0 * ky > height ? y0 * ky - height : Math.max(0, y0 * ky);
    pen.fillRect(x, y, width, height);
    pen.fillStyle = "white";
    pen.fillText(name, x + size * 0.35, y + size * 1.05);
  }
}

function drawHeat() {
  const rows = heat.length, columns = heat[0].length;
  const most = Math.max(...heat.flat(), 1e-9);
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const ink = small.getContext("2d"), pixels = ink.createImageData(columns, rows);
  heat.flat().forEach((weight, i) => {
    const share = weight / most;
    pixels.data.set([255, 150, 20, Math.round(170 * share)], 4 * i);
  });
  ink.putImageData(pixels, 0, 0);
  pen.fillStyle = "rgba(15, 18, 28, 0.55)";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
}

async function choose(blob) {
  fail("");
  if (!blob.type.startsWith("image/") && blob.type !== "") return fail("that is no picture");
  try {
    const image = await createImageBitmap(blob, { imageOrientation: "from-image" });
    picture = { blob, image };
  } catch { return fail("that picture cannot be read"); }
  found = heat = chosen = null;
  words = [];
  $("empty").hidden = true;
  canvas.hidden = false;
  $("stage").classList.add("full");
  show();
  if (task.output === "objects" || $("text").value.trim()) run();
}

function select(name) {
  task = model.tasks.find((one) => one.name === name);
  asked++;
  found = heat = chosen = null;
  words = [];
  fail("");
  $("ask").disabled = false;
  $("note").textContent = "";
  for (const tab of $("tabs").children)
    tab.setAttribute("aria-selected", String(tab.dataset.task === name));
  const image = task.inputs.includes("image"), text = task.inputs.includes("text");
  $("picture").hidden = !image;
  $("text-label").hidden = !text;
  $("text_b-label").hidden = !text || image;
  $("text-label").firstElementChild.textContent =
    task.output === "scores" ? "question" : image ? "hypothesis" : "text";
  $("text").value = task.hint[0] || "";
  $("text_b").value = task.hint[1] || "";
  $("text_b-label").hidden ||= task.hint.length < 2;
  $("ask").textContent = task.output === "objects" ? "Find objects" : "Ask";
  show();
  if (task.output === "objects" && picture) run();
}

function place(event) {
  const edge = canvas.getBoundingClientRect();
  return [(event.clientX - edge.left) / edge.width * picture.image.width,
          (event.clientY - edge.top) / edge.height * picture.image.height];
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); run(); }
});
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
  show();
});
$("clear").addEventListener("click", () => { heat = chosen = null; show(); });
$("other").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { if ($("file").files[0]) choose($("file").files[0]); });
$("stage").addEventListener("click", (event) => {
  if (!picture) return $("file").click();
  if (event.target !== canvas) return;
  const [x, y] = place(event);
  const hit = shown().filter(({ box_xyxy: [x0, y0, x1, y1] }) => x >= x0 && x <= x1 && y >= y0 && y <= y1)
    .sort((a, b) => b.score - a.score)[0];
  if (hit) lookAt({ query: hit.query }, hit);
  else if (task.output === "objects" || $("text").value.trim()) lookAt({ x, y }, null);
});
$("stage").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); }
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("stage").addEventListener(kind, (event) => {
    event.preventDefault();
    $("stage").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
  });
}
addEventListener("resize", () => { if (task) show(); });
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file && task.inputs.includes("image")) choose(file);
});

(async () => {
  model = await (await fetch("/api/model")).json();
  $("about").textContent =
    `${model.source}: one model, ${model.tasks.length} tasks, ${model.parameters.toLocaleString("en")} parameters`;
  $("tabs").append(...model.tasks.map((one) => {
    const tab = element("button", one.name, { type: "button", role: "tab", "data-task": one.name });
    tab.addEventListener("click", () => select(one.name));
    return tab;
  }));
  $("samples").append(...model.pictures.map((name) => {
    const button = element("button", "", { type: "button", "aria-label": `sample ${name}` });
    button.append(element("img", "", { src: `/pictures/${name}`, alt: name }));
    button.addEventListener("click", async () => choose(await (await fetch(`/pictures/${name}`)).blob()));
    return button;
  }));
  select(model.tasks[0].name);
})().catch(() => fail("the server does not answer"));
