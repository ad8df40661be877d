#!/usr/bin/env python3
"""The wire's handshake and frames, computed without our code and without a cryptographic library, from
docs/formats.md, section "Wire", the Noise specification (revision 34), RFC 7748 and RFC 8439.

    python3 tests/golden/make_wire_golden.py > tests/golden/wire_handshake.txt

Only the standard library. Slow, and not constant in time: an oracle, nothing else.
"""
import hashlib
import hmac
import struct

P = 2**255 - 19


def x25519(scalar, point):
    k = int.from_bytes(scalar, "little")
    k = (k & ~7 & ((1 << 255) - 1)) | (1 << 254)
    x1 = int.from_bytes(point, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = (k >> t) & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = (x2 + z2) % P, (x2 - z2) % P, (x3 + z3) % P, (x3 - z3) % P
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = (aa - bb) % P
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def rotate(value, count):
    return ((value << count) | (value >> (32 - count))) & 0xFFFFFFFF


def chacha20_block(key, counter, nonce):
    start = list(struct.unpack("<4I8I", b"expand 32-byte k" + key)) + [counter] + list(struct.unpack("<3I", nonce))
    s = start[:]
    quarters = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(10):
        for a, b, c, d in quarters:
            for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = (s[x] + s[y]) & 0xFFFFFFFF
                s[z] = rotate(s[z] ^ s[x], by)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(s, start)))


def chacha20(key, counter, nonce, text):
    out = b""
    for i in range(0, len(text), 64):
        block = chacha20_block(key, counter + i // 64, nonce)
        out += bytes(a ^ b for a, b in zip(text[i:i + 64], block))
    return out


def poly1305(key, text):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for i in range(0, len(text), 16):
        total = (total + int.from_bytes(text[i:i + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def seal(key, counter, associated, plain):
    nonce = bytes(4) + struct.pack("<Q", counter)
    text = chacha20(key, 1, nonce, plain)
    pad = lambda b: b + bytes(-len(b) % 16)
    lengths = struct.pack("<QQ", len(associated), len(text))
    return text + poly1305(chacha20_block(key, 0, nonce)[:32], pad(associated) + pad(text) + lengths)


def hash512(data):
    return hashlib.blake2b(data).digest()


def hkdf(chaining_key, data, count):
    temporary = hmac.new(chaining_key, data, hashlib.blake2b).digest()
    outputs = [b""]
    for i in range(count):
        outputs.append(hmac.new(temporary, outputs[-1] + bytes([i + 1]), hashlib.blake2b).digest())
    return outputs[1:]


class Noise:
    def __init__(self, prologue, psk):
        self.h = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b".ljust(64, b"\0")
        self.ck = self.h
        self.mix_hash(prologue)
        self.ck, t, k = hkdf(self.ck, psk, 3)
        self.mix_hash(t)
        self.k = k[:32]

    def mix_hash(self, data):
        self.h = hash512(self.h + data)

    def mix_key(self, data):
        self.ck, k = hkdf(self.ck, data, 2)
        self.k = k[:32]

    def ephemeral(self, public):
        self.mix_hash(public)
        self.mix_key(public)

    def encrypt(self, plain):
        sealed = seal(self.k, 0, self.h, plain)
        self.mix_hash(sealed)
        return sealed


def check_primitives():
    """RFC 7748 section 5.2; RFC 8439 section 2.8.2, with its nonce spelled as ours."""
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert x25519(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    key, nonce = bytes(range(0x80, 0xA0)), bytes.fromhex("070000004041424344454647")
    text = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
            b"sunscreen would be it.")
    sealed = chacha20(key, 1, nonce, text)
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    pad = lambda b: b + bytes(-len(b) % 16)
    tag = poly1305(chacha20_block(key, 0, nonce)[:32],
                   pad(associated) + pad(sealed) + struct.pack("<QQ", len(associated), len(sealed)))
    assert tag.hex() == "1ae10b594f09e26a7e902ecbd0600691"


def job_key(file_key, leg, run, job, restart):
    text = lambda b: bytes([len(b)]) + b
    data = text(b"perdure job key 1") + text(leg) + text(run) + struct.pack("<QQ", job, restart)
    return hashlib.blake2b(data, key=file_key, digest_size=32).digest()


def main():
    check_primitives()
    file_key, leg = bytes(range(32)), bytes(range(100, 132))
    run, job, restart = b"0123456789abcdef0123456789abcdef", 4711, 2
    psk = job_key(file_key, leg, run, job, restart)
    print("job_key_one_leg", job_key(file_key, b"", run, job, restart).hex())
    print("job_key", psk.hex())

    responder, address, port = 7, bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 5]), 40123
    preamble = b"PRDWIRE\1"
    prologue = (preamble + bytes([len(run)]) + run + struct.pack("<QI", job, responder) + address +
                struct.pack("<H", port))
    base = bytes([9]) + bytes(31)
    secret_i, secret_r = bytes(range(1, 33)), bytes(range(201, 233))
    noise = Noise(prologue, psk)
    public_i = x25519(secret_i, base)
    noise.ephemeral(public_i)
    hello = preamble + public_i + noise.encrypt(struct.pack("<IIQQ", 3, 0, 0x1122334455667788, 99) + bytes(16))
    print("hello", hello.hex())
    public_r = x25519(secret_r, base)
    noise.ephemeral(public_r)
    noise.mix_key(x25519(secret_i, public_r))
    answer = public_r + noise.encrypt(struct.pack("<IIQ", responder, 0, 99) + bytes(8))
    print("answer", answer.hex())
    key_i, key_r = (k[:32] for k in hkdf(noise.ck, b"", 2))
    print("confirmation", (bytes(4) + seal(key_i, 0, bytes(4), b"")).hex())
    for name, key, counter, plain in (("frame_initiator_1", key_i, 1, b"a frame"),
                                      ("frame_initiator_2", key_i, 2, bytes(range(256)) * 2),
                                      ("frame_responder_0", key_r, 0, b"another")):
        head = struct.pack("<I", len(plain))
        print(name, (head + seal(key, counter, head, plain)).hex())


main()
