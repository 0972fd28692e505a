// Koa and Jimp: the design of the article on node:cluster, alone or as a cluster (WORKERS).
import { Jimp } from "jimp";
import { quality, serve } from "./koa_flip.mjs";

// The tables of a quality are libjpeg's; its encoder writes 4:4:4 and plain Huffman codes, and has no choice.
const settings = quality === undefined ? {} : { quality };

serve(async (source) => {
  const image = await Jimp.fromBuffer(source);
  return image.flip({ vertical: true }).getBuffer("image/jpeg", settings);
});
