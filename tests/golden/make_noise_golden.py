#!/usr/bin/env python3
"""A handshake of Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b as another implementation of Noise makes it, for
secure_channel_test.cc: the pattern itself, with a prologue and payloads that are not Perdure's.

    pip install noiseprotocol==0.3.1
    python3 tests/golden/make_noise_golden.py > tests/golden/noise_nnpsk0.txt

What Perdure puts into the pattern is in make_wire_golden.py.
"""
import warnings

from noise.connection import Keypair, NoiseConnection

warnings.simplefilter("ignore")  # It says that ephemeral keys must not be chosen, and is right.


def party(initiator):
    connection = NoiseConnection.from_name(b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b")
    connection.set_psks(bytes(range(32)))
    connection.set_prologue(b"perdure golden")
    if initiator:
        connection.set_as_initiator()
    else:
        connection.set_as_responder()
    secret = bytes(range(100, 132)) if initiator else bytes(range(150, 182))
    connection.set_keypair_from_private_bytes(Keypair.EPHEMERAL, secret)
    connection.start_handshake()
    return connection


def main():
    initiator, responder = party(True), party(False)
    message_1 = bytes(initiator.write_message(b"ping"))
    assert responder.read_message(message_1) == b"ping"
    message_2 = bytes(responder.write_message(b"pong!"))
    assert initiator.read_message(message_2) == b"pong!"
    print("message_1", message_1.hex())
    print("message_2", message_2.hex())
    print("key_initiator", initiator.noise_protocol.cipher_state_encrypt.k.hex())
    print("key_responder", responder.noise_protocol.cipher_state_encrypt.k.hex())
    print("sealed_initiator", initiator.encrypt(b"x").hex())
    print("sealed_responder", responder.encrypt(b"y").hex())


main()
