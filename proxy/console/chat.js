// A conversation with a model through the proxy, and the earlier ones.

import { read, said } from "./bodies.js";
import { button, complain, doing, el, field, moment, number, put, say, select } from "./dom.js";
import { rendered } from "./markdown.js";
import { Refused, ask, pageOf, raw, send, session } from "./session.js";

const SAID_EVERY = 4000; // ms between two pieces of an answer that are read out
const IMAGES = /^image\/(png|jpeg|gif|webp)$/;
const LARGEST = 8 * 1024 * 1024; // bytes of an image
const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 1],
  ["top_p", "Top p", 0, 1, 1],
  ["presence_penalty", "Presence penalty", -2, 2, 0],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0],
];
const draft = { text: "", images: [], messages: [], settings: {} }; // outlives a visit of another page

export async function show(place, id) {
  const chat = new Chat(place);
  await Promise.all([id ? chat.restore(id) : chat.draw(), chat.models(), chat.history.load()]);
  return () => chat.stop();
}

// --- what is asked

class Settings {
  constructor(reload) {
    this.target = select(
      session.targets.map((name) => [name, name]),
      draft.settings.target ?? session.default,
      { onchange: reload },
    );
    if (!this.target.value) this.target.selectedIndex = 0;
    this.model = el("input", { list: "models", value: draft.settings.model ?? "", autocomplete: "off", required: true });
    this.names = el("datalist", { id: "models" });
    this.preset = select([["", "none"], ...Object.keys(session.presets).map((name) => [name, name])], "", {
      onchange: () => this.choose(),
    });
    this.system = el("textarea", { rows: "2", value: draft.settings.system ?? "" });
    this.sliders = SLIDERS.map(([name, title, min, max, usual]) => {
      const given = draft.settings[name];
      const input = el("input", { type: "range", min, max, step: "0.05", value: given ?? usual });
      const used = el("input", { type: "checkbox", "aria-label": `Send ${title}`, checked: given !== undefined });
      const shown = el("output", {}, String(input.value));
      input.addEventListener("input", () => {
        used.checked = true;
        shown.textContent = input.value;
      });
      return { name, input, used, node: el("div", { class: "slider" }, used, field(title, input), shown) };
    });
    const more = el(
      "details",
      {},
      el("summary", {}, "Settings"),
      field("System prompt", this.system),
      this.sliders.map((slider) => slider.node),
    );
    this.node = el(
      "div",
      { class: "settings" },
      field("Target", this.target),
      field("Model", this.model),
      this.names,
      field("Preset", this.preset),
      more,
    );
  }

  choose() {
    this.system.value = session.presets[this.preset.value] ?? "";
  }

  body(messages) {
    const system = this.system.value.trim();
    const body = {
      model: this.model.value.trim(),
      messages: system ? [{ role: "system", content: system }, ...messages] : messages,
      stream: true,
    };
    for (const { name, input, used } of this.sliders) if (used.checked) body[name] = Number(input.value);
    return body;
  }

  keep() {
    draft.settings = { target: this.target.value, model: this.model.value, system: this.system.value };
    for (const { name, input, used } of this.sliders) if (used.checked) draft.settings[name] = Number(input.value);
  }
}

function dataUrl(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

// --- the conversation

class Chat {
  constructor(place) {
    this.messages = draft.messages;
    this.running = null;
    this.log = el("div", { class: "log", role: "log", "aria-label": "Conversation", "aria-live": "off", tabindex: "0" });
    this.settings = new Settings(doing(() => this.models()));
    this.thumbs = el("ul", { class: "thumbs", "aria-label": "Images to send" });
    this.history = new History();
    this.text = el("textarea", { rows: "3", value: draft.text, placeholder: "Ask something" });
    this.text.addEventListener("input", () => {
      draft.text = this.text.value;
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.form.requestSubmit();
      }
    });
    this.text.addEventListener("paste", (event) => this.attach(event.clipboardData.files, event));
    const files = el("input", {
      type: "file",
      accept: "image/png,image/jpeg,image/gif,image/webp",
      multiple: true,
      onchange: () => this.attach(files.files),
    });
    this.go = el("button", { type: "submit", class: "main" }, "Send");
    this.halt = button("Stop", () => this.stop(), { hidden: true });
    this.again = button("Retry", () => this.retry());
    this.form = el(
      "form",
      {
        class: "composer",
        "aria-label": "Write",
        onsubmit: doing((event) => {
          event.preventDefault();
          return this.submit();
        }),
        ondragover: (event) => event.preventDefault(),
        ondrop: (event) => this.attach(event.dataTransfer.files, event),
      },
      this.thumbs,
      field("Message", this.text),
      el("div", { class: "row" }, this.go, this.halt, this.again, field("Images", files)),
      el("p", { class: "quiet" }, "Enter sends, Shift+Enter begins a line, Escape stops."),
    );
    this.form.addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
    const fresh = button("New chat", () => this.clear());
    place.append(
      el(
        "div",
        { class: "chat" },
        el("div", {}, this.settings.node, this.log, this.form),
        el("aside", { "aria-label": "Earlier conversations" }, fresh, this.history.node),
      ),
    );
    this.drawThumbs();
  }

  async models() {
    const reply = await raw("relay/v1/models", { headers: { target: this.settings.target.value } });
    const told = reply.ok ? await reply.json().catch(() => ({})) : {};
    const names = (told.data ?? []).map((model) => model?.id).filter((name) => typeof name === "string");
    put(
      this.settings.names,
      names.map((value) => el("option", { value })),
    );
    if (!this.settings.model.value && names.length) this.settings.model.value = names[0];
  }

  async attach(files, event) {
    const images = [...(files ?? [])].filter((file) => IMAGES.test(file.type));
    if (!images.length) return;
    event?.preventDefault();
    const large = images.find((file) => file.size > LARGEST);
    if (large) return complain(`${large.name} is larger than 8 MiB`);
    draft.images.push(...(await Promise.all(images.map(dataUrl))));
    this.drawThumbs();
    return say(`${images.length} images attached`);
  }

  drawThumbs() {
    const remove = (at) => {
      draft.images.splice(at, 1);
      this.drawThumbs();
    };
    put(
      this.thumbs,
      draft.images.map((src, at) =>
        el(
          "li",
          {},
          el("img", { src, alt: `Image ${at + 1}` }),
          button("×", () => remove(at), { "aria-label": `Remove image ${at + 1}` }),
        ),
      ),
    );
  }

  clear() {
    this.stop();
    this.messages.length = 0;
    this.draw();
    this.text.focus();
    if (location.hash !== "#chat") history.replaceState(null, "", "#chat");
  }

  async restore(id) {
    const { calls } = await ask(`conversation?id=${encodeURIComponent(id)}`);
    const call = calls[calls.length - 1];
    const asked =
      call.request?.messages ?? (call.request?.prompt ? [{ role: "user", content: String(call.request.prompt) }] : []);
    const told = call.response?.choices?.[0];
    const answer = told?.message ?? (told ? { role: "assistant", content: told.text ?? "" } : null);
    const system = asked
      .filter((message) => message.role === "system")
      .map(textOf)
      .join("\n");
    this.messages.splice(
      0,
      Infinity,
      ...asked.filter((message) => message.role !== "system"),
      ...(answer ? [{ role: "assistant", content: textOf(answer) }] : []),
    );
    this.settings.system.value = system;
    this.settings.model.value = call.model_asked ?? this.settings.model.value;
    if (session.targets.includes(call.target)) this.settings.target.value = call.target;
    this.draw();
    if (!asked.length) complain("The bodies of this conversation were not kept, or are not of a chat.");
  }

  draw() {
    put(
      this.log,
      this.messages.map((message) => this.bubble(message)),
    );
    this.again.hidden = !this.messages.some((message) => message.role === "user") || Boolean(this.running);
    this.log.scrollTop = this.log.scrollHeight;
  }

  bubble(message) {
    const images = Array.isArray(message.content)
      ? message.content
          .map((part) => part?.image_url?.url)
          .filter((url) => typeof url === "string" && url.startsWith("data:image/"))
      : [];
    return el(
      "article",
      { class: `message ${message.role === "user" ? "user" : "other"}`, "aria-label": message.role },
      el("h3", {}, message.role),
      el("div", { class: "body" }, rendered(textOf(message))),
      images.map((src) => el("img", { src, alt: "An image that was sent" })),
    );
  }

  async submit() {
    const text = this.text.value.trim();
    if (this.running || (!text && !draft.images.length)) return;
    const content = draft.images.length
      ? [{ type: "text", text }, ...draft.images.map((url) => ({ type: "image_url", image_url: { url } }))]
      : text;
    const message = { role: "user", content };
    this.messages.push(message);
    const given = { text: this.text.value, images: draft.images };
    Object.assign(draft, { text: "", images: [] });
    this.text.value = "";
    this.drawThumbs();
    try {
      await this.answer();
    } catch (fault) {
      if (!(fault instanceof Refused) && fault.name !== "TypeError") throw fault;
      this.messages.splice(this.messages.indexOf(message), 1); // back to where it was written
      Object.assign(draft, given);
      this.text.value = given.text;
      this.drawThumbs();
      this.draw();
      throw fault;
    }
  }

  async retry() {
    while (this.messages.length && this.messages[this.messages.length - 1].role !== "user") this.messages.pop();
    await this.answer();
  }

  async answer() {
    this.settings.keep();
    this.running = new AbortController();
    Object.assign(this.go, { disabled: true });
    this.halt.hidden = false;
    this.draw();
    const message = { role: "assistant", content: "" };
    try {
      const body = JSON.stringify(this.settings.body(this.messages));
      const reply = await raw("relay/v1/chat/completions", {
        method: "POST",
        headers: { "content-type": "application/json", target: this.settings.target.value },
        body,
        signal: this.running.signal,
      });
      if (!reply.ok) throw new Refused(reply.status, read(await reply.text()).value);
      await this.grow(reply, message);
    } catch (fault) {
      if (fault.name !== "AbortError") throw fault;
      say("Stopped");
    } finally {
      this.running = null;
      this.go.disabled = false;
      this.halt.hidden = true;
      if (message.content && !this.messages.includes(message)) this.messages.push(message);
      this.draw();
      this.history.later();
    }
  }

  async grow(reply, message) {
    this.messages.push(message);
    const place = this.bubble(message);
    this.log.append(place);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let told = 0;
    let last = Date.now();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      const blocks = (rest + piece.value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const event of blocks.flatMap((block) => read(block).events ?? [])) {
        if (event?.error) throw new Error(event.error.message ?? "the backend failed in the middle of its answer");
        message.content += said(event);
      }
      const below = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
      put(place.querySelector(".body"), rendered(message.content));
      if (below) this.log.scrollTop = this.log.scrollHeight;
      if (Date.now() - last > SAID_EVERY) {
        say(message.content.slice(told));
        told = message.content.length;
        last = Date.now();
      }
    }
    say(message.content.slice(told) || "The answer is whole");
  }

  stop() {
    this.running?.abort();
  }
}

function textOf(message) {
  if (typeof message.content === "string") return message.content;
  const parts = Array.isArray(message.content) ? message.content.map((part) => part?.text ?? "").join("\n") : "";
  const tools = (message.tool_calls ?? [])
    .map((call) => `${call.function?.name}(${call.function?.arguments ?? ""})`)
    .join("\n");
  return [parts.trim(), tools].filter(Boolean).join("\n");
}

// --- earlier ones

class History {
  constructor() {
    this.list = el("ul", { class: "history" });
    this.sought = el("input", { type: "search", oninput: () => this.later(300) });
    this.node = el(
      "div",
      {},
      el("h2", {}, "History"),
      session.records ? [field("Search", this.sought), this.list] : el("p", {}, "The call log is off: nothing is kept."),
    );
    this.list.addEventListener("keydown", (event) => this.move(event));
  }

  later(ms = 1500) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load().catch(complain), ms); // what has just ended is written a moment later
  }

  async load() {
    if (!session.records) return;
    const query = new URLSearchParams(this.sought.value.trim() ? { text: this.sought.value.trim() } : {});
    const { conversations } = await pageOf("conversations", query);
    if (this.list.contains(document.activeElement)) return; // somebody is in it
    put(
      this.list,
      conversations.map((each) => this.item(each)),
    );
  }

  item(each) {
    const title = each.title || "(no title)";
    const link = el("a", { href: `#chat/${encodeURIComponent(each.conversation)}` }, title);
    const name = el("input", { value: title, maxlength: "200", "aria-label": `New title of ${title}` });
    const form = el(
      "form",
      { hidden: true, onsubmit: doing((event) => (event.preventDefault(), rename())) },
      name,
      el("button", { type: "submit" }, "Save"),
    );
    const rename = async () => {
      await send("rename", { id: each.conversation, title: name.value });
      link.textContent = name.value;
      form.hidden = true;
      link.focus();
      say("Renamed");
    };
    const hide = async () => {
      await send("hide", { id: each.conversation });
      (made.nextElementSibling?.querySelector("a") ?? this.sought).focus();
      made.remove();
      say("Hidden");
    };
    const open = () => {
      form.hidden = false;
      name.select();
    };
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      form.hidden = true;
      link.focus();
    });
    const made = el(
      "li",
      {},
      link,
      el(
        "p",
        { class: "quiet" },
        moment(each.at),
        ` ${each.model_served ?? ""} ${number((each.tokens_in ?? 0) + (each.tokens_out ?? 0))} tokens`,
      ),
      el(
        "div",
        { class: "row" },
        button("Rename", open, { "aria-label": `Rename ${title}` }),
        button("Hide", hide, { "aria-label": `Hide ${title}` }),
      ),
      form,
    );
    return made;
  }

  move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const links = [...this.list.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    links[Math.min(Math.max(at + step, 0), links.length - 1)].focus();
  }
}
