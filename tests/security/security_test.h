// What all attacks have in common: a job that runs before, and of which nothing has changed after.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "tests/security/attacker.h"
#include "tests/security/job.h"
#include "tests/security/tools.h"

namespace perdure {

// The job of a program: one for all cases of a suite. Each case ends with the question whether the
// job goes on as it was: the same coordinator and generation, no lease that lapsed, no pause that
// was long, memory within what the wire promises, descriptors as before.
class SecurityTest : public testing::Test {
 protected:
  static void TearDownTestSuite() { job_.reset(); }
  JobParts parts_;  // Of the job, when a case makes it.
  void SetUp() override;
  void TearDown() override;

  static Job& job() { return *job_; }
  static NodeBoard& lead() { return job().at(job().Lead()); }
  static WireAddress LeadAddress() { return job().Address(job().Lead()); }
  // Of the coordinator, as who connects to it must mean them.
  static HandshakeTerms LeadTerms();
  // `node` counts so many, soon if not yet, and no more.
  static void ExpectCounted(uint32_t node, Refusal refusal, uint64_t count);
  // The honest agent comes, in the middle of an attack: whether it is taken in.
  static bool LateNodeJoins();
  // A job that goes on is not asked for: the case has ended it.
  static void EndJob() { job_.reset(); }

 private:
  struct Vitals {
    uint64_t term = 0, generation = 0, resident = 0;
    int64_t lapses = 0;
    uint32_t connections = 0, descriptors = 0;
  };
  void ExpectUndisturbed(uint32_t node, const Vitals& before);

  inline static std::unique_ptr<Job> job_;
  std::vector<Vitals> before_;
};

}  // namespace perdure
