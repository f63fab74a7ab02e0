// The page in the browser: takes pictures, asks /api/caption for each, shows what it says and where it looked.
"use strict";

addEventListener("DOMContentLoaded", () => {
  const AT_ONCE = 4;  // requests; the server batches them
  const SHOWN_PIXELS = 1000;  // longer side of a picture on the page
  const LIGHT_PIXELS = 96;  // longer side of a drawn attention map; the browser enlarges it
  const WORD_MILLISECONDS = 430;
  const SEARCHING = ["beam", "length_normalization", "no_repeat"];
  const DRAWING = ["temperature", "top_k", "top_p", "seed"];

  const config = JSON.parse(document.body.dataset.config);
  const form = document.getElementById("form");
  const settings = () => Object.fromEntries(new FormData(form));
  const initial = settings();  // as the server set them
  const waiting = [];
  let running = 0;

  // --- What is asked for -------------------------------------------------------------------------------------

  function fields() {
    const values = settings(), asked = {run: values.run, n_best: values.n_best, attention: true};
    // Drawing settings count only when words are drawn; others only where a control was moved, so that each
    // model keeps its own.
    if (values.how === "draw") for (const name of DRAWING) asked[name] = values[name];
    else for (const name of SEARCHING) if (values[name] !== initial[name]) asked[name] = values[name];
    if (values.max_words !== initial.max_words) asked.max_words = values.max_words;
    if (described().languages?.length) asked.language = values.language;
    return asked;
  }

  function settingsChanged() {
    document.body.classList.toggle("drawing", settings().how === "draw");
    describeRun();
  }

  function described() {
    const name = settings().run;
    return config.runs.find(one => one.name === name) ?? config.runs[0];
  }

  function describeRun() {
    const about = document.getElementById("about"), language = document.getElementById("language");
    const run = described(), spoken = run.languages ?? [];
    language.hidden = spoken.length < 2;
    for (const option of language.options) option.hidden = option.value !== "all" && !spoken.includes(option.value);
    if (spoken.length && language.selectedOptions[0]?.hidden) language.value = spoken[0];
    const facts = [run.encoder, run.words && `${run.words.toLocaleString("en")} words`];
    if (run.scores?.cider) facts.push(`CIDEr ${run.scores.cider} on its dev pictures`);
    about.textContent = "";
    about.append(make("b", {}, run.name), ...facts.filter(Boolean).map(fact => ` · ${fact}`));
  }

  // --- Pictures coming in ------------------------------------------------------------------------------------

  function start() {
    form.addEventListener("submit", event => event.preventDefault());
    // A slider and its number are one control.
    for (const slider of form.querySelectorAll("[type=range]")) {
      const number = slider.parentElement.querySelector("[type=number]");
      slider.addEventListener("input", () => { number.value = slider.value; });
      number.addEventListener("change", () => { slider.value = number.value; number.value = slider.value; });
    }
    form.addEventListener("input", settingsChanged);
    document.getElementById("again").addEventListener("click", again);
    settingsChanged();
    const drop = form.querySelector("#drop"), input = form.querySelector("#files");
    input.addEventListener("change", () => { add([...input.files]); input.value = ""; });
    let inside = 0;
    const over = on => drop.classList.toggle("over", on);
    // The whole page takes a drop: a picture let fall beside the zone must not replace the page.
    addEventListener("dragenter", event => { event.preventDefault(); inside += 1; over(true); });
    addEventListener("dragleave", () => { inside -= 1; if (inside <= 0) { inside = 0; over(false); } });
    addEventListener("dragover", event => event.preventDefault());
    addEventListener("drop", event => {
      event.preventDefault();
      inside = 0;
      over(false);
      add([...event.dataTransfer.files]);
    });
    addEventListener("paste", event => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) { event.preventDefault(); add(files); }
    });
    for (const button of form.querySelectorAll("[data-example]")) {
      button.addEventListener("click", async () => {
        const answer = await fetch(`examples/${button.dataset.example}.png`);
        add([new File([await answer.blob()], `example ${Number(button.dataset.example) + 1}.png`)]);
      });
    }
  }

  function add(files) {
    const results = document.getElementById("results");
    const cards = files.map(file => ({file, node: make("article", {class: "card"}), sent: null}));
    results.prepend(...cards.map(card => card.node));
    cards[0]?.node.scrollIntoView({behavior: calm() ? "auto" : "smooth", block: "nearest"});
    cards.forEach(queue);
  }

  function again() {
    for (const node of document.querySelectorAll("#results .card")) if (node.card) queue(node.card);
  }

  function queue(card) {
    card.node.card = card;
    showWaiting(card);
    if (card.file.size > config.fileBytes) {
      const [has, may] = [card.file.size, config.fileBytes].map(bytes => (bytes / 2 ** 20).toFixed(1));
      showError(card, `has ${has} MiB, at most ${may} MiB are read`);
      return;
    }
    if (!waiting.includes(card)) waiting.push(card);
    next();
  }

  async function next() {
    if (running >= AT_ONCE || !waiting.length) return;
    const card = waiting.shift();
    running += 1;
    next();
    try { await describe(card); }
    catch (error) { showError(card, "could not be sent: the server does not answer", error); }
    running -= 1;
    next();
  }

  async function describe(card) {
    card.url ??= await shownUrl(card.file);
    const answer = await ask(card);
    if (!answer) return;
    const picture = answer.pictures?.[0] ?? {error: answer.error};
    if (picture.error) { showError(card, picture.error); return; }
    card.url ??= picture.preview;
    await showCaption(card, picture, answer);
  }

  async function ask(card) {
    for (let attempt = 0; ; attempt += 1) {
      const form = new FormData();
      form.append("image", card.file, card.file.name || "picture");
      const asked = fields();
      if (!card.url) asked.preview = true;  // of a format that this browser does not show
      for (const [name, value] of Object.entries(asked)) form.append(name, value);
      const response = await fetch("api/caption", {method: "POST", body: form});
      if (response.status === 401) { location.reload(); return null; }
      if (response.status !== 503 || attempt >= 20) return response.json();
      const seconds = Number(response.headers.get("retry-after")) || 2;
      await new Promise(done => setTimeout(done, 1000 * seconds));
    }
  }

  // The picture at a size for the page, upright and on white; null if the browser cannot show it, or if it is
  // so large that decoding it here could hang the page before the server has had a look at it.
  async function shownUrl(file) {
    try {
      const [width, height] = await dimensions(file);
      if (width * height > 100e6) return null;
      const scale = Math.min(1, SHOWN_PIXELS / Math.max(width, height));
      const bitmap = await createImageBitmap(file);
      const canvas = make("canvas", {});
      canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale));
      const pen = canvas.getContext("2d");
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.imageSmoothingQuality = "high";
      pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      bitmap.close();
      const blob = await new Promise(done => canvas.toBlob(done, "image/jpeg", 0.9));
      return URL.createObjectURL(blob);
    } catch { return null; }
  }

  // Read from the head of the file, without decoding it.
  async function dimensions(file) {
    const url = URL.createObjectURL(file), image = new Image();
    try {
      await new Promise((done, fail) => { image.onload = done; image.onerror = fail; image.src = url; });
      return [image.naturalWidth, image.naturalHeight];
    } finally { URL.revokeObjectURL(url); }
  }

  // --- What is shown -----------------------------------------------------------------------------------------

  function showWaiting(card) {
    if (card.node.querySelector(".caption")) { card.node.classList.add("busy"); return; }
    card.node.className = "card waiting";
    card.node.replaceChildren(
      make("div", {class: "look"}),
      make("div", {class: "said"}, make("p", {class: "name"}, card.file.name || "picture"),
           make("i", {class: "line"}), make("i", {class: "line short"})));
  }

  function showError(card, reason, error) {
    if (error) console.error(error);
    card.node.className = "card failed";
    card.node.replaceChildren(
      make("div", {class: "said"}, make("p", {class: "name"}, "No caption"),
           make("p", {class: "reason", role: "alert"}, make("b", {}, card.file.name || "The picture"), ` ${reason}`)),
      closing(card));
  }

  async function showCaption(card, picture, answer) {
    const light = new Light(picture.attention ?? []);
    const image = make("img", {src: card.url, alt: picture.caption});
    await image.decode().catch(() => {});
    const ratio = image.naturalWidth / image.naturalHeight || 1;
    light.fit(ratio);
    const shown = make("div", {class: "picture"}, image, light.canvas);
    shown.style.setProperty("--ratio", ratio);
    const words = [], frames = [];
    const mark = place => [words, frames].forEach(
      list => list.forEach((node, at) => node.classList.toggle("lit", at === place)));
    const look = place => {
      light.show(place);
      mark(place);
      roll(film, frames[place]);
    };
    const player = new Player(look, picture.words?.length ?? 0);
    const lookable = (node, place) => {
      node.addEventListener("pointerenter", event => { if (event.pointerType === "mouse") { player.stop(); look(place); } });
      node.addEventListener("focus", () => { player.stop(); look(place); });
      node.addEventListener("click", () => { player.stop(); look(place); });
      return node;
    };
    const leave = event => { if (event.pointerType === "mouse") { light.show(null); mark(null); } };

    const caption = make("p", {class: "caption", lang: picture.language ?? ""}, ...spelled(picture, (word, place) => {
      words[place] = lookable(make("button", {type: "button", class: "word"}, word), place);
      return words[place];
    }));
    caption.addEventListener("pointerleave", leave);
    const film = make("div", {class: "film"}, ...(picture.words ?? []).map((word, place) => {
      const shot = make("span", {class: "shot"}, make("img", {src: card.url, alt: ""}), light.still(place));
      shot.style.aspectRatio = String(Math.min(1.6, Math.max(0.7, ratio)));
      frames[place] = lookable(make("button", {type: "button", class: "frame"}, shot, make("span", {}, word)), place);
      return frames[place];
    }));
    film.addEventListener("pointerleave", leave);
    const play = make("button", {type: "button", class: "quiet", onclick: () => player.play()}, "Replay");
    card.node.className = "card";
    card.node.replaceChildren(
      make("div", {class: "look"}, shown),
      make("div", {class: "said"},
           make("p", {class: "name"}, [card.file.name, `${answer.run}, ${answer.seconds} s`].filter(Boolean).join(" · ")),
           caption,
           ...spoken(picture),
           ...doubt(picture),
           make("p", {class: "tools"}, copying(() => picture.caption), play, ...correcting(card, caption, picture)),
           ranking(picture)),
      make("div", {class: "looks"}, make("h3", {}, "Where it looked for each word"), film),
      closing(card));
    if (!calm()) player.play();
  }

  // The caption with its words as the model has them, and between them what the caption has (spaces, or none).
  function spelled(picture, button) {
    const nodes = [];
    let rest = picture.caption;
    (picture.words ?? []).forEach((word, place) => {
      const at = rest.indexOf(word);
      if (at < 0) return;
      nodes.push(rest.slice(0, at), button(word, place));
      rest = rest.slice(at + word.length);
    });
    return [...nodes, rest];
  }

  // The captions in the other languages, where all were asked for.
  function spoken(picture) {
    return Object.entries(picture.captions ?? {}).slice(1).map(
      ([language, one]) => make("p", {class: "caption", lang: language}, one.caption));
  }

  // What the model says of its own sentence, where that was measured.
  function doubt(picture) {
    if (picture.unfamiliar) return [make("p", {class: "reason"}, "Unlike the pictures I learned from: this may be a guess.")];
    return [];
  }

  // Scrolls the film, and only it, until a frame is in view; back to its start without one.
  function roll(film, frame) {
    const left = film.scrollLeft, right = left + film.clientWidth;
    let to = frame ? left : 0;
    if (frame && frame.offsetLeft < left) to = frame.offsetLeft - 12;
    if (frame && frame.offsetLeft + frame.offsetWidth > right) to = frame.offsetLeft + frame.offsetWidth + 12 - film.clientWidth;
    if (to !== left) film.scrollTo({left: to, behavior: calm() ? "auto" : "smooth"});
  }

  function ranking(picture) {
    const all = [picture, ...picture.alternatives];
    const top = Math.max(...all.map(one => one.probability), 1e-300);
    return make("ol", {class: "ranking"}, ...all.map(one => {
      const bar = make("i", {});
      bar.style.width = `${100 * one.probability / top}%`;
      return make("li", {title: `probability ${one.probability}`},
                  make("span", {}, one.caption || "(no words)"), make("b", {}, percent(one.probability)), bar);
    }));
  }

  function percent(share) {
    if (share >= 0.001) return `${(100 * share).toPrecision(share >= 0.1 ? 3 : 2)} %`;
    return share > 0 ? `1 in ${Number((1 / share).toPrecision(2)).toLocaleString("en", {maximumFractionDigits: 0})}` : "0";
  }

  // Where the server keeps corrections: a button that lets the caption be written anew, in its place.
  function correcting(card, caption, picture) {
    if (!config.corrections) return [];
    const button = make("button", {type: "button", class: "quiet correct"}, "Correct");
    button.addEventListener("click", () => {
      const field = make("textarea", {rows: 3, maxlength: 1000, "aria-label": "The right caption"});
      const reason = make("p", {class: "reason", role: "alert"});
      const save = make("button", {class: "quiet save"}, "Save");
      const close = () => { editor.replaceWith(caption); button.hidden = false; button.focus(); };
      const cancel = make("button", {type: "button", class: "quiet", onclick: close}, "Cancel");
      const editor = make("form", {class: "editor"}, field, make("p", {class: "tools"}, save, cancel), reason);
      field.value = picture.caption;
      field.addEventListener("keydown", event => {
        if (event.key === "Escape") close();
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); editor.requestSubmit(); }
      });
      editor.addEventListener("submit", async event => {
        event.preventDefault();
        save.disabled = true;
        const kept = await keep(card.file, field.value);
        save.disabled = false;
        if (kept.error) { reason.textContent = `Not kept: ${kept.error}`; return; }
        picture.caption = kept.caption;
        caption.replaceChildren(kept.caption);
        caption.removeAttribute("lang");
        button.textContent = "Kept. Correct again";
        close();
      });
      caption.replaceWith(editor);
      button.hidden = true;
      field.select();
    });
    return [button];
  }

  async function keep(file, caption) {
    const form = new FormData();
    form.append("image", file, file.name || "picture");
    form.append("caption", caption);
    try {
      const response = await fetch("api/correction", {method: "POST", body: form});
      if (response.status === 401) location.reload();
      return await response.json();
    } catch (error) {
      console.error(error);
      return {error: "the server does not answer"};
    }
  }

  function copying(text) {
    const button = make("button", {type: "button", class: "quiet copy"}, "Copy");
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(text()); }
      catch { copyOldWay(text()); }  // without TLS there is no clipboard but on localhost
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    return button;
  }

  function copyOldWay(text) {
    const field = make("textarea", {});
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }

  function closing(card) {
    const close = () => {
      if (card.url?.startsWith("blob:")) URL.revokeObjectURL(card.url);
      card.node.remove();
    };
    return make("button", {type: "button", class: "close", "aria-label": "Remove", onclick: close}, "×");
  }

  // --- Where it looked ---------------------------------------------------------------------------------------

  // Darkness over a picture, but for where a word's weights are: brightest at the highest of them.
  class Light {
    constructor(maps) {
      this.maps = maps;
      this.canvas = make("canvas", {class: "light"});
      this.goal = this.now = null;
    }

    fit(ratio) {
      this.width = Math.round(ratio >= 1 ? LIGHT_PIXELS : LIGHT_PIXELS * ratio) || 1;
      this.height = Math.round(ratio >= 1 ? LIGHT_PIXELS / ratio : LIGHT_PIXELS) || 1;
      this.lit = this.maps.map(map => enlarged(map, this.width, this.height));
      this.now = new Float32Array(this.width * this.height).fill(1);
      paint(this.canvas, this.now, this.width, this.height);
    }

    still(place) {
      const canvas = make("canvas", {class: "light"});
      paint(canvas, this.lit[place] ?? this.now, this.width, this.height);
      return canvas;
    }

    show(place) {
      this.goal = this.lit[place] ?? new Float32Array(this.width * this.height).fill(1);
      if (!this.moving) this.step();
    }

    step() {
      let far = 0;
      for (let at = 0; at < this.now.length; at += 1) {
        const way = this.goal[at] - this.now[at];
        this.now[at] += calm() ? way : 0.22 * way;
        far = Math.max(far, Math.abs(way));
      }
      paint(this.canvas, this.now, this.width, this.height);
      this.moving = far > 0.01;
      if (this.moving) requestAnimationFrame(() => this.step());
    }
  }

  // (h, w) weights → width x height shares of their maximum, smooth (Catmull-Rom), edges held.
  function enlarged(map, width, height) {
    const rows = map.length, columns = map[0].length, wide = map.map(row => stretched(row, columns, width));
    const light = new Float32Array(width * height);
    for (let x = 0; x < width; x += 1) {
      const column = stretched(wide.map(row => row[x]), rows, height);
      for (let y = 0; y < height; y += 1) light[y * width + x] = column[y];
    }
    const top = Math.max(...light, 1e-9);
    return light.map(value => Math.max(0, value / top) ** 0.8);
  }

  function stretched(values, count, length) {
    const at = place => values[Math.min(count - 1, Math.max(0, place))];
    return Array.from({length}, (_, pixel) => {
      const place = (pixel + 0.5) * count / length - 0.5, left = Math.floor(place), t = place - left;
      const [a, b, c, d] = [at(left - 1), at(left), at(left + 1), at(left + 2)];
      return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
    });
  }

  function paint(canvas, light, width, height) {
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const pixels = new ImageData(width, height);
    light.forEach((value, at) => {
      pixels.data.set([12, 10, 20, 200 * (1 - value)], 4 * at);
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  class Player {
    constructor(look, count) { Object.assign(this, {look, count, timer: 0}); }

    play() {
      this.stop();
      let place = 0;
      const turn = () => {
        this.look(place < this.count ? place : null);
        if (place < this.count) this.timer = setTimeout(turn, WORD_MILLISECONDS);
        place += 1;
      };
      turn();
    }

    stop() { clearTimeout(this.timer); }
  }

  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") node.addEventListener("click", value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  start();
});
