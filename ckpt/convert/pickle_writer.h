// Writes the few pickles that Perdure exports: protocol 2 inside torch.save files, 4 for the
// metadata of distributed checkpoints. Each method appends one value or one opcode; containers are
// opened, filled and closed by the caller. Nothing but names of classes is memoised.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "ckpt/convert/pickle_opcodes.h"

namespace perdure {

class PickleWriter {
 public:
  explicit PickleWriter(int protocol);

  void Op(uint8_t opcode) { bytes_ += static_cast<char>(opcode); }
  void None() { Op(kPickleNone); }
  void Bool(bool value) { Op(value ? kPickleNewTrue : kPickleNewFalse); }
  void Int(int64_t value);
  void Float(double value);
  void String(std::string_view text);
  void Global(const std::string& module, const std::string& name);
  // A tuple of ints.
  void IntTuple(std::span<const int64_t> values);
  // torch.Size of them.
  void Size(std::span<const int64_t> values);

  // Appends STOP. Nothing may be written afterwards.
  std::string Finish() &&;

 private:
  void LittleEndian(uint64_t value, int bytes);

  std::string bytes_;
  std::map<std::pair<std::string, std::string>, uint32_t> memo_;
};

}  // namespace perdure
