// What both Koa peers share: the routes and the bodies, in one process or under node:cluster.
import cluster from "node:cluster";
import { readFileSync } from "node:fs";
import Koa from "koa";
import rawBody from "raw-body";

const { PORT, WORKERS, SAMPLE } = process.env;
const LIMIT_BYTES = 32 * 2 ** 20;

/** A JPEG quality, or undefined for the library's own settings. */
export const quality = process.env.QUALITY === "default" ? undefined : Number(process.env.QUALITY);

/** Serve `POST /flip` with a function from bytes to bytes; more than one of WORKERS makes a cluster. */
export const serve = (flip) => (Number(WORKERS) > 1 && cluster.isPrimary ? supervise() : listen(flip));

function listen(flip) {
  const sample = readFileSync(SAMPLE);
  const app = new Koa();
  app.use(async (ctx) => {
    if (ctx.method === "GET" && ctx.path === "/healthz") {
      ctx.body = `ok ${process.pid}\n`;
    } else if (ctx.method === "POST" && ctx.path === "/flip") {
      const body = await bodyOf(ctx);
      ctx.body = await flip(body.length ? body : sample);
      ctx.type = "image/jpeg";
    }
  });
  app.listen({ port: PORT, host: "127.0.0.1", backlog: 2048 }); // as gunicorn
}

async function bodyOf(ctx) {
  const body = await rawBody(ctx.req, { length: ctx.request.length, limit: LIMIT_BYTES });
  if (!ctx.is("multipart/form-data")) return body;
  const form = await new Response(body, { headers: { "content-type": ctx.get("content-type") } }).formData();
  const file = form.get("image");
  ctx.assert(file instanceof Blob, 400, "Send the image as the part `image`.");
  return Buffer.from(await file.arrayBuffer());
}

// Workers end by themselves when the primary is gone: node:cluster does so on 'disconnect'.
function supervise() {
  const ready = new Set();
  for (let i = 0; i < Number(WORKERS); i += 1) cluster.fork();
  cluster.on("listening", ({ id }) => ready.add(id));
  cluster.on("exit", ({ id }) => (ready.delete(id) ? cluster.fork() : stop(1))); // none can start: no loop
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => stop(0));
}

function stop(code) {
  for (const worker of Object.values(cluster.workers)) worker.process.kill("SIGTERM"); // in the middle of an image too
  process.exit(code);
}
