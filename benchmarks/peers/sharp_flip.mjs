// sharp, on one core: flips an image again and again. The protocol is that of benchmarks/cost/bare.py.
import { readFileSync } from "node:fs";
import sharp from "sharp";

const [path, count, quality, kind] = process.argv.slice(2);
const source = readFileSync(path);
sharp.concurrency(1);
sharp.cache(false);

// The tables of this quality and 4:2:0 are those of the source; metadata stays, as with the others.
const flip = () =>
  sharp(source)
    .flip()
    .keepMetadata()
    .jpeg({
      quality: Number(quality),
      chromaSubsampling: "4:2:0",
      progressive: kind === "progressive",
      optimiseCoding: kind === "optimised",
    })
    .toBuffer();

const answer = await flip();
process.stdout.write("warm\n");
for await (const _ of process.stdin);
const before = process.cpuUsage();
for (let i = 0; i < Number(count); i += 1) await flip();
const { user, system } = process.cpuUsage(before);
process.stdout.write(`${(user + system) / 1e6} ${answer.length}\n`);
