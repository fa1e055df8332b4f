// Requests to the proxy, and the login that they need. A session that has ended is asked for again over the page as it is.

export const session = { name: "", csrf: "" };
const dialog = document.getElementById("login");
const form = document.getElementById("login-form");
let waiting = null; // the login that everybody waits for
let ends = 0;

export class Refused extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the proxy answered ${status}`);
    Object.assign(this, { status, body });
  }
}

async function decoded(reply) {
  const text = await reply.text();
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** A reply of the proxy's, as it is. Logs in first where that is needed. `path` is relative to /console/api/. */
export async function raw(path, init = {}, again = true) {
  const headers = { ...(init.headers ?? {}) };
  if (init.method && init.method !== "GET") headers["x-mooltiproxy-csrf"] = session.csrf;
  const reply = await fetch(`/console/api/${path}`, { credentials: "same-origin", ...init, headers });
  if (reply.status !== 401 || path === "login") return reply;
  const why = await decoded(reply);
  if (!again || why?.error?.code !== "login_required") throw new Refused(401, why);
  await login(session.name ? "Your session has ended. What is on the page stays." : "");
  return raw(path, init, false);
}

/** The JSON of a reply. Throws Refused. */
export async function ask(path, init = {}) {
  const reply = await raw(path, init);
  const body = await decoded(reply);
  if (!reply.ok) throw new Refused(reply.status, body);
  return body;
}

export const send = (path, body) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

/** A list of rows. The proxy looks for a moment only and then says where to go on: so often until there are enough. */
export async function pageOf(name, query, enough = 50) {
  const rows = [];
  for (;;) {
    const page = await ask(`${name}?${query}`);
    rows.push(...page[name]);
    if (!page.more || rows.length >= enough) return { ...page, [name]: rows };
    query.set("before", page.before);
  }
}

/** Who is logged in; asks for a key when nobody is. */
export async function begin() {
  const before = session.name;
  Object.assign(session, await ask("session"));
  if (before && before !== session.name) location.reload(); // what is shown is another's
  clearTimeout(ends);
  const left = session.expires * 1000 - Date.now();
  if (session.expires && left < 2 ** 31) ends = setTimeout(() => begin().catch(() => {}), Math.max(left, 0) + 500);
  return session;
}

export async function logout() {
  await send("logout", {});
  location.reload();
}

function login(why) {
  waiting ??= new Promise((done, failed) => {
    document.getElementById("login-why").textContent = why;
    document.getElementById("login-fault").textContent = "";
    // with nothing behind it yet it stays; a browser may close it without asking
    dialog.onclose = () => (session.name ? failed(new Error("not logged in: do it again to go on")) : dialog.showModal());
    form.onsubmit = async (event) => {
      event.preventDefault();
      const reply = await raw("login", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ key: document.getElementById("login-key").value }),
      });
      if (!reply.ok) {
        document.getElementById("login-fault").textContent = new Refused(reply.status, await decoded(reply)).message;
        document.getElementById("login-key").select();
        return;
      }
      form.reset();
      dialog.onclose = null;
      dialog.close();
      waiting = null;
      await begin();
      done();
    };
    dialog.showModal();
  }).finally(() => {
    waiting = null;
  });
  return waiting;
}
