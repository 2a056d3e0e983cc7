"use strict";
async function unpacked(text) { // `text` is gzip in base64
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
const plotlyIsThere = unpacked("PACKED").then((script) => { (0, eval)(script); }); // an indirect eval, in global scope
