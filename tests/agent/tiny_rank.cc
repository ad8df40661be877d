// A rank's process of JobStage.
#include "runtime/agent/rank_main.h"
#include "tests/agent/job_stage.h"

int main() {
  return perdure::RunRankMain(perdure::FrameSocket(perdure::kRankSocketFd), perdure::kRankPageFd,
                              {.parse_config = perdure::StageConfig, .devices = {}, .hub = {}});
}
