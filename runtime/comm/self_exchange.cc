#include "runtime/comm/self_exchange.h"

#include <utility>

#include "runtime/base/check.h"

namespace perdure {

void CopyBytes(Ops* ops, const void* from, size_t bytes, void* to) {
  if (bytes == 0 || from == to) return;
  PERDURE_CHECK(bytes % 2 == 0);
  const auto address = [](const void* data) { return reinterpret_cast<uintptr_t>(data); };
  const bool wide = (bytes | address(from) | address(to)) % sizeof(float) == 0;
  const DType dtype = wide ? DType::kF32 : DType::kBF16;
  const auto count = static_cast<int64_t>(bytes / SizeOf(dtype));
  ops->Copy(ConstMatrix(from, dtype, 1, count), Matrix(to, dtype, 1, count));
}

SelfExchange::Met SelfExchange::Post(uint32_t operation, const Transfer& transfer) {
  std::deque<Waiting>& waiting = waiting_[operation];
  if (waiting.empty() || waiting.front().transfer.kind == transfer.kind) {
    waiting.push_back({transfer, std::make_shared<bool>(false)});
    return waiting.back().met;
  }
  const Waiting other = std::move(waiting.front());
  waiting.pop_front();
  if (waiting.empty()) waiting_.erase(operation);
  PERDURE_CHECK(other.transfer.bytes == transfer.bytes);
  const bool sends = transfer.kind == Transfer::Kind::kSend;
  CopyBytes(ops_, sends ? transfer.data : other.transfer.data, transfer.bytes,
            sends ? other.transfer.data : transfer.data);
  *other.met = true;
  return other.met;
}

}  // namespace perdure
