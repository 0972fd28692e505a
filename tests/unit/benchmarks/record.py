"""Makes the recorded raw data, always the same: `python tests/unit/benchmarks/record.py`.

A small model of a closed loop stands in for the service: users ask, workers take the next request in turn,
and requests that would wait too long are refused.
"""

import csv
import heapq
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"
MACHINE = {"cpu": "Example CPU at 2.50 GHz", "memory_gb": 24, "system": "Linux 6.1"}
VERSIONS = {"python": "3.11.7", "gunicorn": "27.0.1", "pillow": "13.0.0", "locust": "2.47.0"}
COLUMNS = {
    "windows": "began_s,ended_s",
    "requests": "kind,started_s,response_ms,outcome,status,bytes,fault",
    "processes": "at_s,cpu_s,memory_mb",
    "generator": "at_s,cpu_s",
    "health": "at_s,response_ms,status",
}


@dataclass(frozen=True)
class Model:
    """How a topology behaves."""

    workers: int
    service_s: float
    memory_mb: float
    is_peer: bool = False
    max_wait_s: float = 3.0


class Recorder:
    """Writes down what a run of models would leave."""

    def __init__(self, seed: int, window_s: float) -> None:
        self.random = random.Random(seed)
        self.window_s = window_s
        self.now_s = 5.0
        self.tables: dict[str, list[list[Any]]] = {name: [] for name in COLUMNS}

    def measure(self, key: list[Any], model: Model, slowness: float, answer_bytes: int) -> None:
        scenario = str(key[2])
        users = 10 if scenario == "burst" else int(scenario)
        once = scenario == "burst"
        length_s = users * model.service_s / model.workers + 0.2 if once else self.window_s
        began_s = self.now_s + 1.0
        ended_s = began_s + length_s
        asked = [(began_s + (0 if once else -0.5) + self.random.random() * 0.002, n) for n in range(users)]
        heapq.heapify(asked)
        free = [began_s - 1.0] * model.workers
        busy_s = 0.0
        while asked:
            started_s, user = heapq.heappop(asked)
            if started_s >= ended_s:
                continue
            begin_s = max(started_s, min(free))
            if begin_s - started_s > model.max_wait_s:
                took_s, outcome, status, size = 0.004 + self.random.random() * 0.01, "refused", 503, 180
            else:
                service_s = model.service_s * slowness * self.random.lognormvariate(0, 0.08)
                free[free.index(min(free))] = begin_s + service_s
                busy_s += service_s
                took_s, outcome, status, size = begin_s + service_s - started_s, "ok", 200, answer_bytes
            row = ["raw", f"{started_s:.4f}", f"{took_s * 1e3:.2f}", outcome, status, size, ""]
            self.tables["requests"].append([*key, *row])
            if not once:
                pause_s = self.random.uniform(1.5, 7.5) if outcome == "refused" else 0.0005
                heapq.heappush(asked, (started_s + took_s + pause_s, user))
        self.now_s = ended_s
        self.tables["windows"].append([*key, f"{began_s:.3f}", f"{ended_s:.3f}"])
        self._sample(key, model, began_s, length_s, busy_s)

    def _sample(self, key: list[Any], model: Model, began_s: float, length_s: float, busy_s: float) -> None:
        used = min(model.workers, busy_s / length_s)
        for n in range(5):
            at_s = began_s + length_s * n / 4
            memory_mb = model.memory_mb * (0.8 + 0.05 * n) + self.random.random() * 4
            self.tables["processes"].append(
                [*key, f"{at_s:.2f}", f"{7 + used * length_s * n / 4:.2f}", f"{memory_mb:.1f}"]
            )
        load_s = length_s * (0.06 + 0.04 * self.random.random())
        for n in range(5):
            at_s = began_s + length_s * n / 4
            self.tables["generator"].append([*key, f"{at_s:.2f}", f"{2 + load_s * n / 4:.3f}"])
        if not model.is_peer:
            for n in range(8):
                taken_ms = self.random.lognormvariate(0.7, 0.5)
                self.tables["health"].append(
                    [*key, f"{began_s + length_s * n / 8:.2f}", f"{taken_ms:.2f}", 200]
                )

    def write(self, directory: Path, run: dict[str, Any], answers: list[list[Any]]) -> None:
        raw = directory / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        said = {"schema": 1, "interrupted": False, "commit": "0123abc", "versions": VERSIONS} | run
        said["duration_s"] = round(self.now_s, 1)
        said["machine"] = MACHINE | {"cores": run["cores"]}
        (raw / "run.json").write_text(json.dumps(said, indent=1) + "\n")
        for name, columns in COLUMNS.items():
            head = f"image,topology,scenario,repetition,{columns}".split(",")
            write_csv(raw / f"{name}.csv", [head, *self.tables[name]])
        write_csv(raw / "answers.csv", [["image", "topology", "answer_bytes", "psnr_db"], *answers])


def write_csv(file: Path, rows: list[list[Any]]) -> None:
    with file.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(rows)


def topology(
    title: str, model: Model, quality: str = "matched", design: str = "flipcluster"
) -> dict[str, Any]:
    return {
        "title": title,
        "workers": model.workers,
        "is_peer": model.is_peer,
        "quality": quality,
        "design": design,
    }


def rounds(recorder: Recorder, repetitions: int) -> Iterator[tuple[int, float]]:
    """Each repetition finds the machine a little faster or slower."""
    for repetition in range(repetitions):
        yield repetition, recorder.random.uniform(0.95, 1.05)


def record_quick() -> None:
    """Two cores, two images, no peers."""
    images = {
        "small": image("640x427", 640, 427, 67_000),
        "2mp": image("2 megapixels", 1632, 1224, 612_345),
    }
    models = {
        "small": {"single": Model(1, 0.006, 90), "cluster": Model(2, 0.0066, 170)},
        "2mp": {"single": Model(1, 0.040, 140), "cluster": Model(2, 0.042, 260)},
    }
    recorder = Recorder(seed=5, window_s=2.0)
    scenarios = {"small": ["1", "10", "burst"], "2mp": ["1", "10", "100", "1000", "burst"]}
    for name, by_topology in models.items():
        for repetition, slowness in rounds(recorder, 3):
            for scenario in scenarios[name]:
                for key, model in by_topology.items():
                    jitter = slowness * recorder.random.uniform(0.99, 1.01)
                    size = images[name]["bytes"] + 120
                    recorder.measure([name, key, scenario, repetition], model, jitter, size)
    run = {
        "profile": "quick",
        "started": "2026-11-25T21:00:00Z",
        "cores": 2,
        "images": images,
        "topologies": {
            "single": topology("single process", models["2mp"]["single"]),
            "cluster": topology("cluster", models["2mp"]["cluster"]),
        },
        "skipped": [],
    }
    answers = [[name, key, p["bytes"] + 120, "inf"] for name, p in images.items() for key in models[name]]
    recorder.write(RECORDED / "quick", run, answers)


def record_article() -> None:
    """Four cores, the article's image, workers from one to four, and peers."""
    law = {n: 0.068 * (1 + 0.04 * (n - 1) + 0.004 * n * (n - 1)) for n in range(1, 5)}
    ours = {
        "single": Model(1, law[1], 260),
        "workers-2": Model(2, law[2], 500),
        "workers-3": Model(3, law[3], 730),
        "cluster": Model(4, law[4], 960),
        "cluster-lossless": Model(4, law[4] / 2.7, 400),
    }
    peers = {
        "koa-jimp": Model(1, 2.2, 900, is_peer=True, max_wait_s=600),
        "koa-jimp-cluster": Model(4, 2.4, 3000, is_peer=True, max_wait_s=600),
        "koa-sharp": Model(1, 0.30, 400, is_peer=True),
        "koa-sharp-cluster": Model(4, 0.36, 1500, is_peer=True),
        "koa-sharp-cluster-default": Model(4, 0.25, 1450, is_peer=True),
        "flask-pillow": Model(4, 0.44, 900, is_peer=True),
        "falcon-pyvips": Model(4, 0.33, 1100, is_peer=True),
    }
    recorder = Recorder(seed=16, window_s=3.0)
    for repetition, slowness in rounds(recorder, 3):
        for scenario in ("1", "10", "burst"):
            for key, model in (ours | peers).items():
                if key.startswith("workers") and scenario != "10":
                    continue
                jitter = slowness * recorder.random.uniform(0.98, 1.02)
                recorder.measure(["20mp", key, scenario, repetition], model, jitter, 6_712_000)
    titles = {
        "koa-jimp": ("Koa and Jimp", "matched", "Node, Jimp"),
        "koa-jimp-cluster": ("Koa and Jimp, node:cluster", "matched", "Node, Jimp"),
        "koa-sharp": ("Koa and sharp", "matched", "Node, sharp"),
        "koa-sharp-cluster": ("Koa and sharp, node:cluster", "matched", "Node, sharp"),
        "koa-sharp-cluster-default": ("Koa and sharp, node:cluster", "default", "Node, sharp"),
        "flask-pillow": ("Flask and Pillow, gunicorn sync", "matched", "gunicorn sync, Pillow"),
        "falcon-pyvips": ("Falcon and pyvips", "matched", "gunicorn gthread, libvips"),
    }
    names = {
        "single": "single process",
        "cluster": "cluster",
        "cluster-lossless": "cluster, as shipped",
    }
    run = {
        "profile": "article",
        "started": "2026-11-25T22:00:00Z",
        "cores": 4,
        "images": {"20mp": image("20 megapixels", 5472, 3648, 6_700_000)},
        "topologies": {key: topology(names.get(key, key.replace("-", " ")), m) for key, m in ours.items()}
        | {key: topology(titles[key][0], peers[key], *titles[key][1:]) for key in peers},
        "skipped": [{"topology": "thumbor", "why": "it is not installed"}],
    }
    answers = [
        ["20mp", "single", 6_700_120, "inf"],
        ["20mp", "cluster", 6_700_120, "inf"],
        ["20mp", "cluster-lossless", 6_700_000, "inf"],
        ["20mp", "koa-sharp", 6_410_000, 44.81],
        ["20mp", "koa-sharp-cluster", 6_410_000, 44.81],
        ["20mp", "koa-sharp-cluster-default", 3_190_000, 38.2],
        ["20mp", "flask-pillow", 6_702_000, 46.05],
        ["20mp", "falcon-pyvips", 5_810_000, 43.9],
    ]
    recorder.write(RECORDED / "article", run, answers)


def image(title: str, width: int, height: int, size: int) -> dict[str, Any]:
    return {
        "title": title,
        "width": width,
        "height": height,
        "bytes": size,
        "quality": 90,
        "format": "jpeg",
    }


if __name__ == "__main__":
    record_quick()
    record_article()
