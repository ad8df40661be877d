#include "runtime/comm/matcher.h"

#include <cstring>
#include <limits>

namespace perdure {
namespace {

void Deliver(Operation& send, Operation& receive) {
  const void* from = send.copy.empty() ? send.data : send.copy.data();
  if (send.bytes == receive.bytes && send.bytes > 0) std::memmove(receive.data, from, send.bytes);
  receive.FinishReceive(send.bytes);
  send.Finish(absl::OkStatus());
}

}  // namespace

OperationRef Matcher::Pop(Queues& queues, const Key& key) {
  const auto found = queues.find(key);
  if (found == queues.end()) return nullptr;
  OperationRef operation = std::move(found->second.front());
  found->second.pop_front();
  if (found->second.empty()) queues.erase(found);
  return operation;
}

bool Matcher::Send(int source, OperationRef send) {
  const Key key{source, send->tag};
  if (const OperationRef receive = Pop(receives_, key)) {
    Deliver(*send, *receive);
    return true;
  }
  if (send->bytes <= kEagerBytes) {
    const auto* from = static_cast<const std::byte*>(send->data);
    send->copy.assign(from, from + send->bytes);
    send->Finish(absl::OkStatus());
  }
  sends_[key].push_back(std::move(send));
  return false;
}

bool Matcher::Recv(int source, OperationRef receive) {
  const Key key{source, receive->tag};
  if (const OperationRef send = Pop(sends_, key)) {
    Deliver(*send, *receive);
    return true;
  }
  receives_[key].push_back(std::move(receive));
  return false;
}

bool Matcher::HasSend(int source, uint64_t tag) const { return sends_.contains({source, tag}); }

void Matcher::Fail(int source, const absl::Status& receives, const absl::Status& sends) {
  const auto first = [source](Queues& queues) { return queues.lower_bound({source, 0}); };
  const auto last = [source](Queues& queues) {
    return queues.upper_bound({source, std::numeric_limits<uint64_t>::max()});
  };
  for (auto it = first(receives_); it != last(receives_); it = receives_.erase(it))
    for (const OperationRef& receive : it->second) receive->Finish(receives);
  for (auto it = first(sends_); it != last(sends_);) {
    std::erase_if(it->second, [&](const OperationRef& send) {
      const bool copied = send->done();
      if (!copied) send->Finish(sends);
      return !copied;
    });
    it = it->second.empty() ? sends_.erase(it) : std::next(it);
  }
}

void Matcher::FailAll(const absl::Status& status) {
  for (Queues* queues : {&receives_, &sends_}) {
    for (auto& [key, queue] : *queues)
      for (const OperationRef& operation : queue) operation->Finish(status);
    queues->clear();
  }
}

}  // namespace perdure
