// ckpt_bench DIRECTORY [MIB]: rates of writing, reading and verifying one part of so much state.
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "runtime/base/check.h"
#include "tests/ckpt/test_state.h"

namespace {

double Seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  using namespace perdure;
  if (argc < 2) return 2;
  const int64_t mib = argc > 2 ? std::atoll(argv[2]) : 1024;
  const AtomTable table(BigTensors(mib * (1 << 20) / 12), 1 << 18);
  TestState state(table, 1), read(table, 2);
  const std::string directory = std::string(argv[1]) + "/perdure-ckpt-bench";
  PERDURE_CHECK(std::filesystem::create_directory(directory));
  Manifest manifest = TestManifest(table, 1);
  const double gigabytes = static_cast<double>(table.parameters()) * 12e-9;
  const auto report = [&](const char* what, double seconds) {
    fmt::print("{:8} {:6.2f} GB/s ({:.2f} s)\n", what, gigabytes / seconds, seconds);
  };
  const auto write = [&] {
    auto part = WritePart(directory, "part-00000.h5", table, state.states(), 1, 3, manifest.run_id);
    PERDURE_CHECK(part.ok());
    manifest.parts.assign(1, *std::move(part));
  };
  report("write", Seconds(write));
  // Again, with page cache that the machine has used before: its first touch can cost more than the
  // write.
  std::filesystem::remove(directory + "/part-00000.h5");
  report("rewrite", Seconds(write));
  PERDURE_CHECK(WriteManifest(directory, table, manifest).ok());
  report("read", Seconds([&] {
           PERDURE_CHECK(ReadAtoms(directory, manifest, table, read.states()).ok());
         }));
  PERDURE_CHECK(read == state);
  report("verify", Seconds([&] { PERDURE_CHECK(VerifyCheckpoint(directory, manifest).ok()); }));
  report("diff", Seconds([&] { PERDURE_CHECK(DiffCheckpoints(directory, directory)->identical); }));
  std::filesystem::remove_all(directory);
}
