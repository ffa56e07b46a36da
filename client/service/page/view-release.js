/** What is served: version, privacy, signature. Always in sight. */

import { byId, el } from "./dom.js";
import { signature } from "./words.js";

/** @param {{served: object, versions: number[], refused: number}} shelf */
export function showRelease({ served, refused }) {
  byId("release").replaceChildren(
    el("strong", { title: `Fingerprint ${served.fingerprint}` }, `Release ${served.version}`),
    el("span", { className: served.signed ? "signed" : "unsigned" }, signature(served)),
    el("span", {}, `Privacy: ${served.privacy}`),
    ...(refused ? [el("span", { className: "unsigned" }, `Refused on the shelf: ${refused}`)] : []),
  );
}
