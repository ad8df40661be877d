#include "runtime/comm/piecewise_fabric.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr uint64_t kPieceTag = uint64_t{1} << (kTagBits + 1);
constexpr uint64_t kAnswerTag = uint64_t{1} << (kTagBits + 2);
constexpr uint64_t kNumberMask = kPieceTag - 1;
constexpr size_t kBatch = 16;  // Pieces permitted at once.

}  // namespace

PiecewiseFabric::PiecewiseFabric(std::unique_ptr<Fabric> fabric, int size)
    : peers_(static_cast<size_t>(size)), fabric_(std::move(fabric)) {}

OperationRef PiecewiseFabric::Start(Operation::Kind kind, int peer, uint64_t tag, void* data,
                                    size_t bytes) {
  auto operation = std::make_shared<Operation>(kind, peer, tag, data, bytes);
  operation->finished_counter = &finished_;
  fabric_->Post(operation);
  return operation;
}

OperationRef PiecewiseFabric::StartOwning(Operation::Kind kind, int peer, uint64_t tag,
                                          std::vector<std::byte> memory) {
  auto operation = std::make_shared<Operation>(kind, peer, tag, memory.data(), memory.size());
  operation->copy = std::move(memory);
  operation->finished_counter = &finished_;
  fabric_->Post(operation);
  return operation;
}

void PiecewiseFabric::Post(const OperationRef& operation) {
  if (operation->bytes <= kHeadData)
    fabric_->Post(operation);
  else if (operation->kind == Operation::Kind::kSend)
    StartSend(operation);
  else
    StartReceive(operation);
}

void PiecewiseFabric::StartSend(const OperationRef& whole) {
  held_.Hold(whole);
  Peer& peer = PeerOf(whole->peer);
  Transfer send;
  send.whole = whole;
  send.number = peer.sends++;
  send.pieces = (whole->bytes - kHeadData + kPieceBytes - 1) / kPieceBytes;
  if (peer.answer == nullptr)
    peer.answer = StartOwning(Operation::Kind::kRecv, whole->peer, kAnswerTag,
                              std::vector<std::byte>(sizeof(Answer)));
  std::vector<std::byte> head(kPieceBytes);
  const Header header{whole->bytes, send.number};
  std::memcpy(head.data(), &header, sizeof header);
  std::memcpy(head.data() + sizeof header, whole->data, kHeadData);
  send.parts.push_back(
      StartOwning(Operation::Kind::kSend, whole->peer, whole->tag, std::move(head)));
  sends_.push_back(std::move(send));
}

void PiecewiseFabric::StartReceive(const OperationRef& whole) {
  held_.Hold(whole);
  Transfer receive;
  receive.whole = whole;
  receive.pieces = (whole->bytes - kHeadData + kPieceBytes - 1) / kPieceBytes;
  receive.parts.push_back(StartOwning(Operation::Kind::kRecv, whole->peer, whole->tag,
                                      std::vector<std::byte>(kPieceBytes)));
  receives_.push_back(std::move(receive));
}

OperationRef PiecewiseFabric::StartPiece(const Transfer& transfer, size_t index) {
  const Operation& whole = *transfer.whole;
  const size_t begin = kHeadData + index * kPieceBytes;
  return Start(whole.kind, whole.peer, kPieceTag | (transfer.number & kNumberMask),
               static_cast<std::byte*>(whole.data) + begin,
               std::min(kPieceBytes, whole.bytes - begin));
}

void PiecewiseFabric::SendAnswer(int peer, const Answer& answer) {
  std::vector<std::byte> memory(sizeof answer);
  std::memcpy(memory.data(), &answer, sizeof answer);
  StartOwning(Operation::Kind::kSend, peer, kAnswerTag, std::move(memory));
}

bool PiecewiseFabric::Progress() {
  const bool moved = fabric_->Progress();
  for (const Truncation& truncation : fabric_->TakeTruncations())
    if (truncation.bytes == kPieceBytes)  // Only heads are that long.
      SendAnswer(truncation.peer, {.tag = truncation.tag, .by_tag = 1});
  if (finished_ == finished_handled_ && ending_ == 0) return moved;
  finished_handled_ = finished_;
  ReadAnswers();
  sends_.remove_if([this](Transfer& send) { return AdvanceSend(send); });
  receives_.remove_if([this](Transfer& receive) { return AdvanceReceive(receive); });
  return moved || finished_ != finished_handled_;
}

void PiecewiseFabric::ReadAnswers() {
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    OperationRef& receive = peers_[rank].answer;
    while (receive != nullptr && receive->done() && receive->status().ok()) {
      Answer answer;
      std::memcpy(&answer, receive->data, sizeof answer);
      Obey(static_cast<int>(rank), answer);
      receive = StartOwning(Operation::Kind::kRecv, static_cast<int>(rank), kAnswerTag,
                            std::vector<std::byte>(sizeof answer));
    }
  }
}

// By tag: it is the oldest whose head has not been answered, because heads match in order.
void PiecewiseFabric::Obey(int peer, const Answer& answer) {
  const auto meant = [&](const Transfer& send) {
    if (send.whole->peer != peer) return false;
    return answer.by_tag != 0 ? !send.started && send.whole->tag == answer.tag
                              : send.number == answer.number;
  };
  const auto send = std::find_if(sends_.begin(), sends_.end(), meant);
  if (send == sends_.end()) return;
  send->started = true;
  send->permitted = std::min(send->permitted + answer.pieces, send->pieces);
  if (answer.pieces == 0) send->pieces = send->permitted = send->posted;
}

bool PiecewiseFabric::AdvanceSend(Transfer& send) {
  Operation& whole = *send.whole;
  while (!whole.done() && !send.parts.empty() && send.parts.front()->done()) {
    if (!send.parts.front()->status().ok()) whole.Finish(send.parts.front()->status());
    send.parts.pop_front();
  }
  // Once it is done, for whatever reason, its memory is the caller's.
  while (!whole.done() && send.posted < send.permitted)
    send.parts.push_back(StartPiece(send, send.posted++));
  if (send.started && send.posted == send.pieces && send.parts.empty())
    whole.Finish(absl::OkStatus());
  if (!whole.done()) return false;
  held_.Release(whole);
  return true;
}

bool PiecewiseFabric::AdvanceReceive(Transfer& receive) {
  Operation& whole = *receive.whole;
  if (!whole.done() && !receive.started) ReadHead(receive);
  while (!whole.done() && receive.started && !receive.parts.empty() &&
         receive.parts.front()->done()) {
    if (!receive.parts.front()->status().ok()) whole.Finish(receive.parts.front()->status());
    receive.parts.pop_front();
    ++receive.done;
  }
  if (!whole.done() && receive.started) Permit(receive);
  if (!whole.done()) return false;
  GiveUp(receive);
  if (!LetGo(receive)) return false;
  --ending_;
  held_.Release(whole);
  return true;
}

void PiecewiseFabric::ReadHead(Transfer& receive) {
  Operation& whole = *receive.whole;
  const OperationRef head = receive.parts.front();
  if (!head->done()) return;
  receive.parts.pop_front();
  if (absl::IsDataLoss(head->status()))
    return whole.Finish(DataLoss(
        "rank {} sent fewer than the {} bytes expected (tag {:#x}); the two sides disagree on the "
        "plan: check that both run the same binary and configuration",
        whole.peer, whole.bytes, whole.tag));
  if (!head->status().ok()) return whole.Finish(head->status());
  Header header;
  std::memcpy(&header, head->data, sizeof header);
  if (header.bytes != whole.bytes) {
    SendAnswer(whole.peer, {.number = header.number});
    return whole.FinishReceive(header.bytes);
  }
  std::memcpy(whole.data, static_cast<std::byte*>(head->data) + sizeof header, kHeadData);
  receive.number = header.number;
  receive.started = true;
}

void PiecewiseFabric::Permit(Transfer& receive) {
  while (receive.permitted < receive.pieces && receive.permitted <= receive.done + kBatch) {
    const size_t count = std::min(kBatch, receive.pieces - receive.permitted);
    for (size_t i = 0; i < count; ++i)
      receive.parts.push_back(StartPiece(receive, receive.permitted++));
    SendAnswer(receive.whole->peer,
               {.number = receive.number, .pieces = static_cast<uint32_t>(count)});
  }
  if (receive.done == receive.pieces) receive.whole->Finish(absl::OkStatus());
}

void PiecewiseFabric::GiveUp(Transfer& receive) {
  if (receive.ending) return;
  receive.ending = true;
  ++ending_;
  for (const OperationRef& part : receive.parts)
    if (part->held_by_library != nullptr) fabric_->Cancel(*part);
}

bool PiecewiseFabric::LetGo(const Transfer& receive) const {
  return std::all_of(receive.parts.begin(), receive.parts.end(),
                     [](const OperationRef& part) { return part->held_by_library == nullptr; });
}

void PiecewiseFabric::Cancel(Operation& whole) {
  if (whole.bytes <= kHeadData) return fabric_->Cancel(whole);
  const auto receive = std::find_if(receives_.begin(), receives_.end(),
                                    [&](const Transfer& r) { return r.whole.get() == &whole; });
  if (receive != receives_.end()) GiveUp(*receive);
}

void PiecewiseFabric::DropPeer(int rank) {
  sends_.remove_if([&](Transfer& send) {
    if (send.whole->peer != rank) return false;
    held_.Release(*send.whole);
    return true;
  });
  if (const OperationRef answer = std::exchange(PeerOf(rank).answer, nullptr);
      answer != nullptr && answer->held_by_library != nullptr)
    fabric_->Cancel(*answer);
  fabric_->DropPeer(rank);
}

absl::Duration PiecewiseFabric::Arm() {
  return finished_ == finished_handled_ ? fabric_->Arm() : absl::ZeroDuration();
}

}  // namespace perdure
