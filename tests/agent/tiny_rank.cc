// A rank's process of JobStage.
#include <signal.h>

#include "runtime/agent/rank_main.h"
#include "tests/agent/job_stage.h"

int main() {
  // As launch/main.cc does: UCX and PSM take over signals when they are loaded.
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGINT, SIGTERM})
    ::signal(signal, SIG_DFL);
  return perdure::RunRankMain(perdure::FrameSocket(perdure::kRankSocketFd), perdure::kRankPageFd,
                              {.parse_config = perdure::StageConfig, .devices = {}, .hub = {}});
}
