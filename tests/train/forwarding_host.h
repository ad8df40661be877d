// A host that hands every call to another, for tests that change a few of them.
#pragma once

#include <string>
#include <vector>

#include "runtime/train/rank_host.h"

namespace perdure {

class ForwardingHost : public RankHost {
 public:
  explicit ForwardingHost(RankHost* host) : host_(host) {}

  void Remark(const std::string& line) override { host_->Remark(line); }
  absl::Status Loaded(std::span<const int64_t> atoms, std::span<const Digest> digests) override {
    return host_->Loaded(atoms, digests);
  }
  void Certificate(const Digest& certificate) override { host_->Certificate(certificate); }
  Command StepFinished(const StepReport& report) override { return host_->StepFinished(report); }
  absl::StatusOr<std::vector<std::string>> FindHeld(std::span<const HeldNeed> needs) override {
    return host_->FindHeld(needs);
  }
  absl::Status AwaitLease(int64_t step) override { return host_->AwaitLease(step); }
  std::vector<Flip> Planted(int64_t step) override { return host_->Planted(step); }
  void Progress(int64_t step, const WorkDone& work) override { host_->Progress(step, work); }
  void Doing(const Activity& activity) override { host_->Doing(activity); }
  void OlderMayGo() override { host_->OlderMayGo(); }
  void NoSnapshots() override { host_->NoSnapshots(); }
  void Waiting(int64_t step) override { host_->Waiting(step); }
  absl::StatusOr<SaveOrder> Frozen(int64_t step, const std::string& file, uint32_t nonce) override {
    return host_->Frozen(step, file, nonce);
  }
  absl::Status Saved(const SavedRun& saved) override { return host_->Saved(saved); }
  absl::StatusOr<SaveOrder> NextOrder(int64_t step) override { return host_->NextOrder(step); }
  absl::Status Verified(int64_t step, const std::string& file, const absl::Status& vote) override {
    return host_->Verified(step, file, vote);
  }

 protected:
  RankHost* host_;
};

}  // namespace perdure
