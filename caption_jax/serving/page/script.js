// The page of the server: sends photographs, one per request, and shows their captions.

const AT_ONCE = 3; // requests in flight
const CANDIDATES = 4;
const RETRIES = 20; // after 429
const find = (selector, root = document) => root.querySelector(selector);
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const tidy = (text) => text.replace(/ +([.,;:!?])/g, "$1"); // some training captions have spaces before marks
const sentence = (text) => text + (/[.!?]$/.test(text) ? "" : ".");

let token = ""; // only here: neither in a cookie nor in the storage of the browser
let model = null;
let running = 0;
const queue = [];

const make = (name, properties = {}) => Object.assign(document.createElement(name), properties);

function announce(text) {
  find("#live").textContent = "";
  setTimeout(() => (find("#live").textContent = text), 50); // so that the same text is announced again
}

const notify = (text) => Object.assign(find("#notice"), { textContent: text, hidden: !text });

// The server

function send(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  return fetch(path, { cache: "no-store", ...options, headers });
}

async function explain(response) {
  const { status } = response;
  if (status === 401) return "This server needs an access token.";
  const message = (await response.json().catch(() => null))?.error?.message ?? `it answers with status ${status}`;
  const unreadable = "no image can be read: ";
  if (message.startsWith(unreadable)) return sentence(message.replace(unreadable, "The server cannot read this file: "));
  const cause = { 413: "The file is too large", 422: "The server refuses the request", 429: "The server is busy" }[status];
  return sentence(`${cause ?? "The server failed"}: ${message.replace(/: try again$/, "")}`);
}

async function loadModel() {
  try {
    const response = await send("v1/model");
    if (response.status === 401) return askForToken(Boolean(token));
    if (!response.ok) throw new Error(await explain(response));
    model = await response.json();
  } catch (error) {
    notify(error instanceof TypeError ? "The server cannot be reached. Trying again." : error.message);
    return setTimeout(loadModel, 5000);
  }
  find("#access").hidden = true;
  find("#search").hidden = !model.search;
  find("#facts").textContent = [model.encoder, model.step && `step ${model.step}`].filter(Boolean).join(", ");
  const isReady = model.state === "ready";
  notify(isReady ? "" : `The server is ${model.state}. Photographs wait until it is ready.`);
  if (!isReady) setTimeout(loadModel, 2000);
  work();
}

function askForToken(wasWrong) {
  model = null;
  find("#access").hidden = false;
  if (wasWrong) find("#access-note").textContent = "The server does not accept this token.";
  find("#token").focus();
}

// The queue

function add(files) {
  if (!files.length) return;
  document.body.classList.add("used");
  const plates = [...files].map(makePlate);
  find("#sheet").prepend(...plates.map((plate) => plate.root));
  queue.push(...plates);
  announce(files.length === 1 ? `${files[0].name} is added.` : `${files.length} photographs are added.`);
  work();
}

function work() {
  while (model?.state === "ready" && running < AT_ONCE && queue.length) {
    running += 1;
    caption(queue.shift()).finally(() => {
      running -= 1;
      work();
    });
  }
}

function chooseOptions() {
  const { method, beams, attention } = model.options;
  const options = attention ? { attention } : {};
  if (!beams.length) return { ...options, method };
  return { ...options, method: "beam", beams: beams[0], candidates: Math.min(beams[0], CANDIDATES) };
}

async function caption(plate) {
  if (plate.signal.aborted) return;
  try {
    const limit = model.limits?.request_bytes ?? Infinity;
    if (plate.file.size > limit) throw new Error(`The file is too large: the server takes ${megabytes(limit)}.`);
    const response = await request(plate);
    if (response.status === 401) {
      queue.unshift(plate);
      showState(plate, "Waiting for the token.");
      return askForToken(true);
    }
    if (!response.ok) throw new Error(await explain(response));
    showCaption(plate, (await response.json()).captions[0]);
  } catch (error) {
    if (plate.signal.aborted) return;
    showError(plate, error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
}

// Sends a photograph, again each time that the queue of the server is full.
async function request(plate) {
  const type = plate.file.type.startsWith("image/") ? plate.file.type : "application/octet-stream";
  const options = { method: "POST", body: plate.file, headers: { "Content-Type": type }, signal: plate.signal };
  for (let retry = 0; ; retry += 1) {
    showState(plate, "Captioning…");
    const response = await send(`v1/captions?${new URLSearchParams(chooseOptions())}`, options);
    if (response.status !== 429 || retry === RETRIES) return response;
    for (let left = Number(response.headers.get("Retry-After")) || 1; left > 0; left -= 1) {
      showState(plate, `The server is busy. Trying again in ${left} s.`);
      await wait(1);
    }
    if (plate.signal.aborted || !model) return response;
  }
}

const megabytes = (bytes) => (bytes < 2 ** 20 ? `${Math.floor(bytes / 1024)} KB` : `${Math.floor(bytes / 2 ** 20)} MB`);

// A photograph and its label

function makePlate(file) {
  const root = find("#plate").content.cloneNode(true).firstElementChild;
  const name = file.name || "Pasted photograph";
  const stop = new AbortController();
  const plate = { file, name, root, stop, signal: stop.signal };
  const image = find("img", root);
  const url = URL.createObjectURL(file);
  image.onload = () => find(".frame", root).style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  image.onerror = () => {
    root.classList.add("blind");
    find(".frame", root).dataset.text = "This browser cannot show the file";
  };
  image.src = url;
  find(".name", root).textContent = name;
  root.setAttribute("aria-label", name);
  find(".copy", root).onclick = (event) => copy(plate.text, event.currentTarget);
  find(".again", root).onclick = () => {
    showState(plate, "Waiting.");
    find(".remove", root).focus(); // the button disappears
    queue.push(plate);
    work();
  };
  find(".remove", root).onclick = () => remove(plate, url);
  find(".remove", root).setAttribute("aria-label", `Remove ${name}`);
  showState(plate, "Waiting.");
  return plate;
}

function remove(plate, url) {
  const neighbour = plate.root.nextElementSibling ?? plate.root.previousElementSibling;
  plate.stop.abort();
  if (queue.includes(plate)) queue.splice(queue.indexOf(plate), 1);
  plate.root.remove();
  URL.revokeObjectURL(url);
  announce(`${plate.name} is removed.`);
  if (!neighbour) document.body.classList.remove("used");
  (neighbour ? find(".remove", neighbour) : find("#files")).focus();
}

function showState(plate, text, isBusy = true) {
  plate.root.setAttribute("aria-busy", isBusy);
  plate.root.classList.remove("failed");
  find(".state", plate.root).textContent = text;
  find(".again", plate.root).hidden = true;
}

function showError(plate, message) {
  showState(plate, message, false);
  plate.root.classList.add("failed");
  find(".again", plate.root).hidden = false;
  announce(`${plate.name}: ${message}`);
}

function showCaption(plate, answer) {
  const { root } = plate;
  const [text, ...others] = [answer, ...answer.alternatives].map((entry) => tidy(entry.caption));
  plate.text = find("img", root).alt = text;
  showState(plate, text ? "" : "The model has no caption for this photograph.", false);
  const line = answer.attention ? makeWords(plate, answer.attention) : make("p", { className: "text", textContent: text });
  find(".caption", root).replaceChildren(line);
  const bare = (other) => other.replace(/\W+$/, ""); // two captions may differ only in their last mark
  const rest = others.filter((other, index) => other && ![text, ...others.slice(0, index)].map(bare).includes(bare(other)));
  find(".others ol", root).replaceChildren(...rest.map(makeAlternative));
  find(".others", root).hidden = !rest.length;
  find(".copy", root).hidden = !text;
  announce(`${plate.name}: ${text || "no caption"}`);
}

function makeAlternative(text) {
  const button = make("button", { type: "button", className: "plain", textContent: "Copy" });
  button.setAttribute("aria-label", `Copy: ${text}`);
  button.onclick = () => copy(text, button);
  const row = make("li");
  row.append(make("span", { textContent: text }), button);
  return row;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without HTTPS, browsers offer only the older way.
    const field = make("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    button.focus();
    if (!isCopied) return announce("The browser does not allow copying.");
  }
  announce(`Copied: ${text}`);
  button.dataset.text ??= button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = button.dataset.text), 2000);
}

// Attention

// The words of a caption as a toolbar: one stop of the Tab key, and arrow keys from word to word.
function makeWords(plate, { words, weights }) {
  const note = find(".note", plate.root);
  const heat = find(".heat", plate.root);
  heat.classList.toggle("square", model.resize === "crop"); // the model sees the square in the middle
  const idle = "Point at a word to see where the model looked.";
  const buttons = words.map((word, index) => {
    const button = make("button", { type: "button", textContent: word, tabIndex: index ? -1 : 0 });
    button.onpointerenter = () => show(index);
    button.onfocus = () => {
      buttons.forEach((other) => (other.tabIndex = other === button ? 0 : -1));
      show(index);
    };
    return button;
  });
  const bar = make("div", { role: "toolbar" });
  buttons.forEach((button, index) => bar.append(/^\W/.test(words[index]) || !index ? "" : " ", button));
  bar.setAttribute("aria-label", "Words of the caption, and where the model looked for each");

  function show(index) {
    buttons.forEach((button, other) => button.classList.toggle("lit", other === index));
    heat.classList.toggle("shown", index >= 0);
    const peak = index >= 0 && drawHeat(heat, weights[index]);
    note.textContent = peak ? `“${words[index]}”: most of all ${peak}` : idle;
    if (peak) buttons[index].setAttribute("aria-description", peak);
  }

  bar.onpointerleave = bar.onfocusout = () => show(buttons.indexOf(document.activeElement));
  bar.onkeydown = (event) => {
    const index = buttons.indexOf(document.activeElement);
    const last = buttons.length - 1;
    const steps = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last };
    if (event.key === "Escape") show(-1);
    if (!(event.key in steps)) return;
    event.preventDefault();
    buttons[Math.min(Math.max(steps[event.key], 0), last)].focus();
  };
  show(-1);
  return bar;
}

// Returns the weights of `length` cells for each of `size` pixels: a cubic B-spline, which is smooth and never negative.
function makeSpline(size, length) {
  return Array.from({ length: size }, (_, pixel) => {
    const row = new Float32Array(length);
    const x = ((pixel + 0.5) / size) * length - 0.5;
    for (let cell = Math.floor(x) - 1; cell <= Math.floor(x) + 2; cell += 1) {
      const d = Math.abs(x - cell);
      const weight = d < 1 ? 2 / 3 - d * d * (1 - d / 2) : d < 2 ? (2 - d) ** 3 / 6 : 0;
      row[Math.min(Math.max(cell, 0), length - 1)] += weight;
    }
    return row;
  });
}

// Draws the weights of a grid, bright where they are high, and returns where that is, in words.
function drawHeat(canvas, grid) {
  const [rows, columns] = [grid.length, grid[0].length];
  const { width, height } = canvas;
  const [down, across] = [makeSpline(height, rows), makeSpline(width, columns)];
  const lines = grid.map((line) => across.map((spline) => spline.reduce((sum, weight, j) => sum + weight * line[j], 0)));
  const values = new Float32Array(width * height);
  down.forEach((spline, y) => {
    for (let i = 0; i < rows; i += 1) {
      if (spline[i]) for (let x = 0; x < width; x += 1) values[y * width + x] += spline[i] * lines[i][x];
    }
  });
  const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, 0]);
  const picture = new ImageData(width, height);
  values.forEach((value, index) => picture.data.set(colour((value - 0.7 * low) / (high - 0.7 * low || 1)), 4 * index));
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const peak = values.indexOf(high);
  return describePlace(Math.floor(peak / width) / height, (peak % width) / width);
}

// From the dark of the room to the amber of the light, in red, green, blue and opacity.
function colour(value) {
  const ramp = (from, to) => Math.min(Math.max((value - from) / (to - from), 0), 1);
  const dark = 0.66 * (1 - ramp(0.1, 0.8));
  const light = 0.5 * ramp(0.35, 1);
  const opacity = light + dark * (1 - light);
  const mix = (amber, night) => (amber * light + night * dark * (1 - light)) / (opacity || 1);
  return [mix(255, 16), mix(150, 16), mix(50, 20), 255 * opacity];
}

function describePlace(y, x) {
  const row = y < 1 / 3 ? "upper" : y > 2 / 3 ? "lower" : "";
  const column = x < 1 / 3 ? "left" : x > 2 / 3 ? "right" : "";
  if (row && column) return `${row} ${column}`;
  return { upper: "at the top", lower: "at the bottom" }[row] ?? (column ? `on the ${column}` : "in the centre");
}

// Search

async function search(query) {
  const title = find("#found-title");
  find("#found").hidden = false;
  find("#results").replaceChildren();
  title.textContent = "Searching…";
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" } };
    const response = await send("v1/search", { ...options, body: JSON.stringify({ query, limit: 24 }) });
    if (response.status === 401) askForToken(true);
    if (!response.ok) throw new Error(await explain(response));
    const { results } = await response.json();
    title.textContent = `${results.length || "No"} ${results.length === 1 ? "photograph" : "photographs"} for “${query}”`;
    find("#results").append(...results.map(makeResult));
  } catch (error) {
    title.textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
  }
  announce(title.textContent);
}

function makeResult({ name, caption, image, score }) {
  const picture = make("div", { className: "blank" });
  if (image) showThumbnail(picture, image, caption || name);
  const label = make("p", { className: "quiet", textContent: `${caption ? `${name}, ` : ""}${score.toFixed(2)}` });
  const result = make("li");
  result.append(picture, make("p", { textContent: caption || name }), label);
  return result;
}

// Loads a thumbnail with the token, which an <img> would not send.
async function showThumbnail(picture, path, alt) {
  const url = new URL(path.replace(/^\//, ""), document.baseURI); // the page may be under a path of a proxy
  if (url.origin !== location.origin) return;
  const response = await send(url).catch(() => null);
  if (!response?.ok) return;
  const image = make("img", { alt, src: URL.createObjectURL(await response.blob()) });
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  picture.replaceWith(image);
}

// Events

find("#files").onchange = (event) => {
  add(event.target.files);
  event.target.value = "";
};
find("#access").onsubmit = (event) => {
  event.preventDefault();
  token = find("#token").value.trim();
  find("#token").value = "";
  loadModel();
};
find("#search").onsubmit = (event) => {
  event.preventDefault();
  search(find("#query").value.trim());
};
find("#close-found").onclick = () => {
  find("#found").hidden = true;
  find("#query").focus();
};
document.addEventListener("paste", (event) => add(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind !== "drop" && (kind === "dragover" || event.relatedTarget !== null));
    if (kind === "drop") add(event.dataTransfer.files);
  });
}
loadModel();
