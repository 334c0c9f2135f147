"""Weights and inputs of the reference cases, made from names with NumPy alone.

The reference was run with exactly these, so its files hold only what it computed.
"""

import zlib

import numpy as np

EMBEDDINGS = ("_embeddings", "cls_embed.")


def normal(key, shape):
    """Standard normal float32 numbers that follow from a key."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return rng.standard_normal(shape, dtype=np.float32)


def canonical(key, share_decoders):
    """The name whose numbers a key takes, where the state_dict names a tensor twice."""
    key = key.replace("bert_model.embeddings.", "bert_model.module.embeddings.")
    if share_decoders and ".transformer.decoders." in key:
        head, tail = key.split(".transformer.decoders.")
        key = head + ".transformer.decoder." + tail.split(".", 2)[2]
    return key


def make(key, shape, dtype, share_decoders):
    """A float32 array, or None where the tensor keeps the value it is built with."""
    last = key.rsplit(".", 1)[-1]
    if "float" not in str(dtype) or last == "empty_weight":
        return None
    key = canonical(key, share_decoders)
    n = normal(key, shape)
    if last == "running_var":
        return np.abs(np.float32(1) + np.float32(0.1) * n)
    if len(shape) == 1:
        if last == "weight":  # LayerNorm and frozen batch norm
            return np.float32(1) + np.float32(0.1) * n
        return np.float32(0.02) * n  # biases, running_mean
    if "query_embeds." in key:  # large, so that the queries differ clearly
        return np.float32(3) * n
    if any(e in key for e in EMBEDDINGS):
        return n
    return n * np.float32(1 / np.sqrt(np.prod(shape[1:])))


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(u8):
    """uint8 [H, W, 3] to normalised float32 [3, H, W]."""
    x = u8.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((x - MEAN) / STD).transpose(2, 0, 1))


def gen(key):
    """The random generator of a key."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def image(key, h, w, cell=16):
    """A coarse random colour grid plus fine noise, uint8 [h, w, 3]."""
    r = gen(key)
    grid = r.integers(0, 256, (-(-h // cell), -(-w // cell), 3)).astype(np.int64)
    big = np.kron(grid, np.ones((cell, cell, 1), np.int64))[:h, :w]
    return np.clip(big + r.integers(-24, 25, (h, w, 3)), 0, 255).astype(np.uint8)


def text(key, length, lengths, vocab, pair):
    """[CLS] a [SEP] (b [SEP]) padded with 0; ids 101 and 102 are CLS and SEP."""
    r = gen(key)
    ids = np.zeros((len(lengths), length), np.int32)
    mask, seg = np.zeros_like(ids), np.zeros_like(ids)
    for i, n in enumerate(lengths):
        ids[i, :n] = r.integers(103, vocab, n)
        ids[i, 0], ids[i, n - 1] = 101, 102
        mask[i, :n] = 1
        if pair:
            cut = n // 2
            ids[i, cut] = 102
            seg[i, cut + 1 : n] = 1
    return {"input_ids": ids, "input_mask": mask, "segment_ids": seg}


def boxes(key, counts, classes, attr_classes=None):
    """Normalised (cx, cy, w, h) boxes, labels in 1..classes-1 and, where asked,
    attributes: 16 slots an object, -1 where unused, some objects with none."""
    r = gen(key)
    out = {"boxes": [], "labels": []}
    if attr_classes:
        out["attributes"] = []
    for n in counts:
        wh = r.uniform(0.1, 0.6, (n, 2))
        c = wh / 2 + r.uniform(0, 1, (n, 2)) * (1 - wh)
        out["boxes"].append(np.concatenate([c, wh], 1).astype(np.float32))
        out["labels"].append(r.integers(1, classes, n).astype(np.int32))
        if attr_classes:
            a = -np.ones((n, 16), np.int32)
            for i in range(n):
                k = int(r.integers(0, 4))
                a[i, :k] = r.choice(np.arange(1, attr_classes), k, replace=False)
            out["attributes"].append(a)
    return out


def soft_targets(key, batch, classes):
    """Four answers with scores 1, 0.9, 0.6 and 0.3 per example, float32 [batch, classes]."""
    r = gen(key)
    t = np.zeros((batch, classes), np.float32)
    for i in range(batch):
        idx = r.choice(np.arange(1, classes), 4, replace=False)
        t[i, idx] = np.array([1.0, 0.9, 0.6, 0.3], np.float32)
    return t


DET = ("detection_coco", "detection_visual_genome")
VL = ("vqa2", "visual_entailment")
GLUE = ("glue_qnli", "glue_qqp", "glue_sst2", "glue_mnli_mismatched")


def make_inputs(case, ds, cfg, sizes, text_len, counts):
    """The inputs of one dataset's batch. cfg: the fixture's config (a dict)."""
    k = case + "/" + ds + "/"
    b = len(sizes)
    out = {}
    if ds in DET + VL:
        out["images"] = [image(k + f"image/{i}", h, w) for i, (h, w) in enumerate(sizes)]
    if ds in VL + GLUE:
        n = text_len["vl" if ds in VL else "glue"]
        vocab = cfg["base_args"]["bert_config"].get("vocab_size", 30522)
        lengths = [n, max(4, n // 2 + 1)] if b == 2 else [n - i for i in range(b)]
        pair = ds in GLUE and ds != "glue_sst2"
        out.update(text(k + "text", n, lengths, vocab, pair))
    if ds in DET:
        head = cfg["heads"]["detection"][ds]
        attr = cfg["base_args"]["attribute_class_num"] if head["use_attr"] else None
        out.update(boxes(k + "boxes", counts, head["num_classes"], attr))
    elif ds == "vqa2":
        n = cfg["heads"]["vl"][ds]["num_labels"]
        out["targets"] = soft_targets(k + "targets", b, n)
    else:
        n = cfg["heads"]["vl" if ds in VL else "glue"][ds]["num_labels"]
        out["targets"] = gen(k + "targets").integers(0, n, b).astype(np.int32)
    return out
