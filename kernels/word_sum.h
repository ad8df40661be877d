// A checksum of a run of memory for every backend: with x_i its 32-bit words, little-endian, the
// last one filled up with zeros, the sum of x_i (2 i + 1), modulo 2^64.
//
// What follows for runs of at most 2^31 words, because no product below wraps and a weight is odd:
// any one or two flipped bits change it, any word that gets another value does, and so do two
// different words that exchange their places. It guards against accidents, not against a forger.
// Sums of pieces of a run add up to the run's, in any order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace perdure {

// Of `bytes` of host memory, of any alignment, that begin with word `first` of their run. Any
// thread.
uint64_t WordSum(const void* data, size_t bytes, int64_t first = 0);

}  // namespace perdure
