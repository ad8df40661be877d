// A rank thread that is killed, as far as others can see: at some event of its life (a call of its
// transport or of its host) its peers lose it and its thread stands still, so that whatever it had
// stored by then stays as it is. Let go at the end of a test, it finds its peers gone.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "runtime/comm/transport.h"
#include "tests/train/forwarding_host.h"

namespace perdure {

class KilledRank {
 public:
  // The `at`-th event, from 0, behind its Progress(after); negative: never.
  KilledRank(int rank, int64_t after, int64_t at) : rank_(rank), after_(after), at_(at) {}

  // For TrainingJob.
  std::unique_ptr<Transport> WrapTransport(int rank, std::unique_ptr<Transport> transport);
  std::unique_ptr<RankHost> WrapHost(int rank, RankHost* host);
  void Ended(int rank);

  // Returns when all of `ranks` have ended or stand still.
  void AwaitOthers(int ranks);
  void LetGo();
  // Events behind Progress(after), up to Progress(after + 1).
  int64_t events_of_step();
  // The last step that any rank has finished.
  int64_t finished();

 private:
  class KilledTransport;
  class KilledHost;
  void Event(int rank);
  void Progress(int rank, int64_t step);

  const int rank_;
  const int64_t after_, at_;
  Transport* transport_ = nullptr;  // The victim's.
  std::mutex mutex_;                // Guards what follows.
  std::condition_variable changed_;
  bool armed_ = false, still_ = false, let_go_ = false;
  int64_t events_ = 0, events_of_step_ = 0, finished_ = 0;
  std::set<int> ended_;
};

}  // namespace perdure
