// The OpenAPI document as a page.

import { button, el, save } from "./dom.js";
import { ask } from "./session.js";

export async function show(place) {
  const told = await ask("openapi.json");
  const groups = new Map();
  for (const [path, methods] of Object.entries(told.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push([method, path, operation]);
    }
  }
  const file = () => save("openapi.json", new Blob([JSON.stringify(told, null, 2)], { type: "application/json" }));
  place.append(
    el(
      "p",
      {},
      told.info.description,
      " Send the key as ",
      el("code", {}, "Authorization: Bearer …"),
      ", x-api-key or x-goog-api-key.",
    ),
    button("Save openapi.json", file),
  );
  for (const [tag, operations] of groups) {
    place.append(el("section", {}, el("h2", {}, tag), operations.map(operation)));
  }
}

function operation([method, path, told]) {
  const fields = Object.entries(told.requestBody?.content["application/json"]?.schema.properties ?? {});
  return el(
    "details",
    { class: "operation" },
    el("summary", {}, el("code", { class: method }, method.toUpperCase()), " ", el("code", {}, path), " ", told.summary),
    told.security?.length === 0 ? el("p", {}, "Needs no key.") : null,
    told.parameters?.length
      ? el(
          "ul",
          {},
          told.parameters.map((given) => el("li", {}, el("code", {}, given.name), ` (${given.in}) `, given.description ?? "")),
        )
      : null,
    fields.length
      ? el(
          "p",
          {},
          "JSON body: ",
          fields.map(([name]) => [el("code", {}, name), " "]),
        )
      : null,
    el(
      "ul",
      {},
      Object.entries(told.responses).map(([status, reply]) =>
        el("li", {}, el("code", {}, status), ` ${reply.description} `, Object.keys(reply.content ?? {}).join(", ")),
      ),
    ),
  );
}
