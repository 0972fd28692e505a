// Koa and sharp (libvips), alone or as a cluster (WORKERS).
import cluster from "node:cluster";
import sharp from "sharp";
import { quality, serve } from "./koa_flip.mjs";

// A cluster has a process for each core, so more threads for an image would wait on each other; a single
// process keeps sharp's default. Either way sharp turns up to four images at once, in the threads of libuv:
// its single process is no single core.
if (cluster.isWorker) sharp.concurrency(1);
sharp.cache(false); // no request finds the operations of another

const settings =
  quality === undefined
    ? undefined
    : { quality, chromaSubsampling: "4:2:0", progressive: false, optimiseCoding: false };

serve((source) => {
  const flipped = sharp(source).flip();
  return (settings ? flipped.keepMetadata() : flipped).jpeg(settings).toBuffer();
});
