#include "ckpt/convert/pickle_writer.h"

#include <bit>
#include <limits>

#include "runtime/base/check.h"

namespace perdure {

PickleWriter::PickleWriter(int protocol) {
  PERDURE_CHECK(protocol == 2 || protocol == 4);
  Op(kPickleProto);
  Op(static_cast<uint8_t>(protocol));
}

void PickleWriter::LittleEndian(uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) bytes_ += static_cast<char>(value >> (8 * i) & 0xFF);
}

void PickleWriter::Int(int64_t value) {
  if (value >= 0 && value <= 0xFF) {
    Op(kPickleBinInt1);
    LittleEndian(static_cast<uint64_t>(value), 1);
  } else if (value >= std::numeric_limits<int32_t>::min() &&
             value <= std::numeric_limits<int32_t>::max()) {
    Op(kPickleBinInt);
    LittleEndian(static_cast<uint64_t>(value), 4);
  } else {
    Op(kPickleLong1);
    LittleEndian(8, 1);
    LittleEndian(static_cast<uint64_t>(value), 8);
  }
}

void PickleWriter::Float(double value) {
  Op(kPickleBinFloat);
  const auto bits = std::bit_cast<uint64_t>(value);
  for (int i = 7; i >= 0; --i) bytes_ += static_cast<char>(bits >> (8 * i) & 0xFF);
}

void PickleWriter::String(std::string_view text) {
  PERDURE_CHECK(text.size() <= std::numeric_limits<uint32_t>::max());
  Op(kPickleBinUnicode);
  LittleEndian(text.size(), 4);
  bytes_ += text;
}

void PickleWriter::Global(const std::string& module, const std::string& name) {
  const auto [entry, is_new] =
      memo_.try_emplace({module, name}, static_cast<uint32_t>(memo_.size()));
  if (is_new) {
    Op(kPickleGlobal);
    bytes_ += module + "\n" + name + "\n";
  }
  Op(is_new ? kPickleLongBinPut : kPickleLongBinGet);
  LittleEndian(entry->second, 4);
}

void PickleWriter::IntTuple(std::span<const int64_t> values) {
  Op(kPickleMark);
  for (const int64_t value : values) Int(value);
  Op(kPickleTuple);
}

void PickleWriter::Size(std::span<const int64_t> values) {
  Global("torch", "Size");
  IntTuple(values);
  Op(kPickleTuple1);
  Op(kPickleReduce);
}

std::string PickleWriter::Finish() && {
  Op(kPickleStop);
  return std::move(bytes_);
}

}  // namespace perdure
