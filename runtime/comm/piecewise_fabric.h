// A Fabric over another one that never sees a long message: those travel in pieces that the library
// copies through its own buffers. For libraries whose own protocol for long messages cannot be
// trusted when a peer dies; see transport_ofi.cc.
//
// A long message begins with its head, kPieceBytes long and under its own tag: a header and the
// first bytes. The receiver, once it has matched the head, posts receives for some more pieces and
// permits the sender to send those, and so on: never more than two batches are under way, and a
// message that nobody receives takes no memory but its head's. No receive of the other fabric is
// longer than a piece, so a receive that is taken back is not being filled outside of Progress.
//
// A short receive that meets a long message is cut off by the library; the sender is then told to
// send no more (Fabric::TakeTruncations).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/fabric.h"
#include "runtime/comm/operation.h"

namespace perdure {

class PiecewiseFabric final : public Fabric {
 public:
  // What libfabric's ofi_rxm copies without asking first, unless its environment says less. Telling
  // it to copy 64 KiB wins back some bandwidth and costs 40 MiB per peer.
  static constexpr size_t kPieceBytes = 16384;
  // Of a tag: the caller's, a transport's own, and two for pieces and answers.
  static constexpr int kWireTagBits = kTagBits + 3;

  PiecewiseFabric(std::unique_ptr<Fabric> fabric, int size);

  std::string name() const override { return fabric_->name(); }
  absl::StatusOr<std::string> Address() override { return fabric_->Address(); }
  absl::Status AddPeer(int peer, const std::string& address, bool same_host) override {
    return fabric_->AddPeer(peer, address, same_host);
  }
  void Post(const OperationRef& operation) override;
  void PostFirst(const OperationRef& operation) override { fabric_->PostFirst(operation); }
  void PostLast(const OperationRef& operation) override { fabric_->PostLast(operation); }
  void Cancel(Operation& receive) override;
  bool Progress() override;
  std::vector<LinkFailure> TakeLinkFailures() override { return fabric_->TakeLinkFailures(); }
  bool FetchesFrom(int peer) const override { return fabric_->FetchesFrom(peer); }
  void DropPeer(int peer) override;
  absl::Duration Arm() override;
  int fd() const override { return fabric_->fd(); }

 private:
  struct Header {
    uint64_t bytes = 0;
    uint64_t number = 0;  // Of the message, among the long ones from its sender to its receiver.
  };
  struct Answer {
    uint64_t number = 0;
    uint64_t tag = 0;  // Instead of a number that the receiver does not know.
    uint32_t pieces =
        0;  // That may be sent on top of those permitted before; none: no more at all.
    uint32_t by_tag = 0;
  };
  static constexpr size_t kHeadData = kPieceBytes - sizeof(Header);

  // A long message under way.
  struct Transfer {
    OperationRef whole;
    uint64_t number = 0;
    bool started = false;            // Receives: the head has come. Sends: an answer has.
    bool ending = false;             // Receives: given up, waiting for the library to let go.
    size_t pieces = 0;               // Behind the head.
    size_t permitted = 0;            // Of these, the first so many.
    size_t posted = 0;               // Sends: likewise.
    size_t done = 0;                 // Receives: likewise.
    std::deque<OperationRef> parts;  // Under way: first the head, then pieces in order.
  };
  struct Peer {
    uint64_t sends = 0;   // Long ones to it.
    OperationRef answer;  // The receive of its next answer, from the first long send on.
  };

  Peer& PeerOf(int rank) { return peers_[static_cast<size_t>(rank)]; }
  OperationRef Start(Operation::Kind kind, int peer, uint64_t tag, void* data, size_t bytes);
  OperationRef StartOwning(Operation::Kind kind, int peer, uint64_t tag,
                           std::vector<std::byte> memory);
  void StartSend(const OperationRef& whole);
  void StartReceive(const OperationRef& whole);
  OperationRef StartPiece(const Transfer& transfer, size_t index);
  void SendAnswer(int peer, const Answer& answer);
  void ReadAnswers();
  void Obey(int peer, const Answer& answer);

  // True if the transfer is over.
  bool AdvanceSend(Transfer& send);
  bool AdvanceReceive(Transfer& receive);
  void ReadHead(Transfer& receive);
  void Permit(Transfer& receive);
  void GiveUp(Transfer& receive);
  bool LetGo(const Transfer& receive) const;

  std::vector<Peer> peers_;
  std::list<Transfer> sends_;     // In order of posting.
  std::list<Transfer> receives_;  // Likewise.
  uint32_t finished_ = 0;         // Operations of the other fabric that have ended.
  uint32_t finished_handled_ = 0;
  int ending_ = 0;  // Receives that wait for the library to let go.
  HeldOperations held_;
  std::unique_ptr<Fabric> fabric_;  // Closed first.
};

}  // namespace perdure
