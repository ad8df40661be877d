// The book of a run on disk, RUN/nodes: what was seen of its nodes, which of them are pinned, which
// a person has cleared. It outlives jobs. Each process that has seen something has a file of its
// own, and appends a line by one write; a pin is a file, a clearing one that is replaced whole. So
// any number may write and read at a time, on any shared file system, without locks.
// docs/formats.md, section 13, has its files.
//
// Whoever reads takes what can be read: lines that are torn, or that somebody has tampered with,
// are passed over and counted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/control/evidence_book.h"

namespace perdure {

class NodeBook {
 public:
  // Bounds of what is read; what is beyond is passed over. An Append that would exceed them is
  // ResourceExhausted.
  static constexpr int64_t kFilesMax = 65536;
  static constexpr int64_t kFileBytesMax = 1 << 20;
  static constexpr int64_t kLineBytesMax = 2048;

  explicit NodeBook(const std::string& run_directory) : directory_(run_directory + "/nodes") {}

  // `writer` is one process at a time, and its file's name: "<job start>-<node>".
  // InvalidArgument: CheckEvidence refuses the entry; otherwise the file cannot be written.
  absl::Status Append(const std::string& writer, const EvidenceEntry& entry) const;

  // Never to be excluded, until it is unpinned. Durable on return. InvalidArgument: no node's name.
  absl::Status Pin(const std::string& node) const;
  absl::Status Unpin(const std::string& node) const;  // NotFound: it is not pinned.
  // Nothing that is known of it now is held against it. Durable on return. NotFound: nothing is
  // known.
  absl::Status Clear(const std::string& node, absl::Time now) const;

  struct Contents {
    EvidenceBook book;
    int64_t passed_over = 0;  // Lines, files and pins that are none, or too many.
  };
  // An empty book where the run has none. InvalidArgument: EvidenceBook::Validate refuses the
  // options; otherwise a folder cannot be listed.
  absl::StatusOr<Contents> Read(const EvidenceBook::Options& options) const;

 private:
  std::string seen() const { return directory_ + "/seen"; }
  std::string pins() const { return directory_ + "/pins"; }
  std::string cleared() const { return directory_ + "/cleared"; }

  std::string directory_;
};

// One line of the book, without its end; and back. InvalidArgument: it is none.
std::string EvidenceLine(const EvidenceEntry& entry);
absl::StatusOr<EvidenceEntry> ParseEvidenceLine(std::string_view line);

}  // namespace perdure
