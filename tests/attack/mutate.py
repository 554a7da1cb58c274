"""Small damage to bytes, as disks, networks and malice do it."""

import json

# Numbers at which readers break: signs, sizes of integers, no integers, no numbers at all.
ODD = (0, 1, -1, 2, 64, 2**31, 2**32, 2**40, 2**63 - 1, 2**64, 10**30, 10**400, 0.5, -0.0, 1e300,
       float("inf"), float("nan"), True, None, "", "8", "x" * 5000, "a\nb", "\x1b[31mred", "\ud800",
       "../x", [], {}, [[[]]])


def damage(data, rng, structure=512):
    """The bytes with one kind of damage, often in the first `structure` of them -> (bytes, kind)."""
    data, n = bytearray(data), len(data)
    kind = rng.choice("flip flip flip cut cut extend noise zero delete repeat number swap".split())
    at = rng.randrange(min(n, structure) if rng.random() < 0.6 else n) if n else 0
    size = rng.choice((1, 4, 8, 64, 300))
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 16)) if n else 0):
            data[rng.choice((at, rng.randrange(n), n - 1 - at))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.choice((at, max(0, n - size))):]
    elif kind == "extend":
        data += rng.randbytes(size)
    elif kind == "noise":
        data[at:at + size] = rng.randbytes(size)
    elif kind == "zero":
        data[at:at + size] = bytes(size)
    elif kind == "delete":
        del data[at:at + size]
    elif kind == "repeat":
        data[at:at] = data[at:at + size] * rng.choice((1, 3))
    elif kind == "number":
        value, size = rng.choice(ODD[3:9]), rng.choice((1, 2, 4, 8))
        data[at:at + size] = (value % 256**size).to_bytes(size, rng.choice(("little", "big")))
    else:
        other = rng.randrange(n) if n else 0
        data[at:at + size], data[other:other + size] = (data[other:other + size],
                                                        data[at:at + size])
    return bytes(data), kind


def damage_json(value, rng):
    """A JSON value with one place in it replaced, removed or doubled -> (value, what was done)."""
    value = json.loads(json.dumps(value))
    places = [(value, k) for k in (value if isinstance(value, dict) else range(len(value)))]
    while True:  # walk down to some depth
        box, key = rng.choice(places)
        inner = box[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            break
        places = [(inner, k) for k in (inner if isinstance(inner, dict) else range(len(inner)))]
    kind = rng.choice(("put", "put", "put", "remove", "wrap", "rename"))
    if kind == "put":
        box[key] = rng.choice(ODD)
    elif kind == "remove":
        del box[key]
    elif kind == "wrap":
        box[key] = [inner]
    elif isinstance(box, dict):
        box[str(rng.choice(ODD))] = box.pop(key)
    return value, f"{kind} {str(key)[:30]}"
