#include <algorithm>
#include <filesystem>
#include <set>

#include "ckpt/checkpoint.h"
#include "ckpt/file_io.h"
#include "ckpt/manifest_json.h"
#include "ckpt/store_hdf5.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// A run of the file's bytes that comes from memory.
struct Piece {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  const float* data = nullptr;
};

std::vector<Piece> PayloadPieces(const AtomTable& table, std::span<const AtomState> states,
                                 const std::array<uint64_t, kStatePartCount>& offsets) {
  std::vector<Piece> pieces;
  pieces.reserve(states.size() * kStatePartCount);
  for (size_t part = 0; part < offsets.size(); ++part) {
    uint64_t offset = offsets[part];
    for (const AtomState& state : states) {
      const uint64_t count =
          static_cast<uint64_t>(table.atoms()[static_cast<size_t>(state.atom)].count);
      pieces.push_back({offset, count * sizeof(float), state.parts[part]});
      offset += pieces.back().bytes;
    }
  }
  return pieces;
}

// Goes through the file block by block: digests what is in memory and writes it; leaves holes where
// there is nothing.
class BlockWriter {
 public:
  BlockWriter(File& file, const LaidOutPart& part, std::span<const Piece> pieces)
      : file_(file), part_(part), pieces_(pieces) {}

  absl::StatusOr<std::vector<Digest>> Run() {
    std::vector<Digest> digests;
    digests.reserve(part_.bytes / kBlockBytes + 1);
    for (uint64_t begin = 0; begin < part_.bytes; begin += kBlockBytes) {
      ASSIGN_OR_RETURN(const Digest digest,
                       Block(begin, std::min(begin + kBlockBytes, part_.bytes)));
      digests.push_back(digest);
    }
    // Every byte of the state must have had its block.
    if (next_ != pieces_.size())
      return Internal("{}: the laid out file has {} bytes, too few for its datasets", file_.path(),
                      part_.bytes);
    return digests;
  }

 private:
  absl::StatusOr<Digest> Block(uint64_t begin, uint64_t end) {
    DigestStream stream;
    for (uint64_t at = begin; at < end;) {
      if (next_ < pieces_.size() && pieces_[next_].offset + done_ == at) {
        at += TakePiece(at, end - at, stream);
        continue;
      }
      const uint64_t until = next_ < pieces_.size() ? std::min(end, pieces_[next_].offset) : end;
      PERDURE_CHECK(until > at);
      ASSIGN_OR_RETURN(const uint64_t taken, TakeImage(at, until - at, stream));
      at += taken;
    }
    RETURN_IF_ERROR(Flush());
    return stream.Finish();
  }

  // At most `most` bytes of the current piece. Returns how many.
  uint64_t TakePiece(uint64_t at, uint64_t most, DigestStream& stream) {
    const Piece& piece = pieces_[next_];
    const uint64_t bytes = std::min(piece.bytes - done_, most);
    Queue(at, reinterpret_cast<const char*>(piece.data) + done_, bytes, stream);
    done_ += bytes;
    if (done_ == piece.bytes) {
      ++next_;
      done_ = 0;
    }
    return bytes;
  }

  // At most `most` bytes of what HDF5 wrote, within one page of its image. Returns how many.
  absl::StatusOr<uint64_t> TakeImage(uint64_t at, uint64_t most, DigestStream& stream) {
    static constexpr std::array<char, SparseImage::kPageBytes> kZeros{};
    const uint64_t within = at % SparseImage::kPageBytes;
    const uint64_t bytes = std::min(most, SparseImage::kPageBytes - within);
    if (const char* page = part_.image.Page(at - within)) {
      Queue(at, page + within, bytes, stream);
      return bytes;
    }
    RETURN_IF_ERROR(Flush());
    stream.Update(kZeros.data(), bytes);
    return bytes;
  }

  void Queue(uint64_t at, const char* data, uint64_t bytes, DigestStream& stream) {
    stream.Update(data, bytes);
    if (queue_.empty()) queue_offset_ = at;
    queue_.push_back({const_cast<char*>(data), bytes});  // iovec serves readv, too.
  }

  absl::Status Flush() {
    if (queue_.empty()) return absl::OkStatus();
    absl::Status status = file_.WriteAt(queue_offset_, queue_);
    queue_.clear();
    return status;
  }

  File& file_;
  const LaidOutPart& part_;
  std::span<const Piece> pieces_;
  size_t next_ = 0;    // First piece that is not done,
  uint64_t done_ = 0;  // and how much of it is.
  std::vector<iovec> queue_;
  uint64_t queue_offset_ = 0;
};

absl::Status CheckStates(const AtomTable& table, std::span<const AtomState> states,
                         const std::string& path) {
  std::set<int64_t> seen;
  for (const AtomState& state : states) {
    if (state.atom < 0 || state.atom >= static_cast<int64_t>(table.atoms().size()))
      return InvalidArgument("{}: there is no atom {} of {}", path, state.atom,
                             table.atoms().size());
    if (!seen.insert(state.atom).second)
      return InvalidArgument("{}: atom {} is given twice", path, state.atom);
    for (const float* part : state.parts) PERDURE_CHECK(part != nullptr);
  }
  return absl::OkStatus();
}

// All that touches the file after it was created and before it is closed.
absl::Status FillFile(File& file, const LaidOutPart& part, std::span<const Piece> pieces,
                      std::vector<Digest>& blocks) {
  RETURN_IF_ERROR(file.Truncate(part.bytes));  // Its length, also where it ends in a hole.
  ASSIGN_OR_RETURN(blocks, BlockWriter(file, part, pieces).Run());
  return file.Sync();
}

}  // namespace

absl::StatusOr<PartReport> WritePart(const std::string& directory, const std::string& file_name,
                                     const AtomTable& table, std::span<const AtomState> states,
                                     int64_t step, uint64_t generation, const std::string& run_id) {
  const std::string path = (std::filesystem::path(directory) / file_name).string();
  if (!IsPartFileName(file_name))
    return InvalidArgument("{} is not the name of a part file (part-00000.h5)", path);
  RETURN_IF_ERROR(CheckStates(table, states, path));
  PartReport report;
  report.file = file_name;
  for (const AtomState& state : states) {
    report.atoms.push_back(state.atom);
    report.atom_digests.push_back(
        AtomDigest(state, table.atoms()[static_cast<size_t>(state.atom)].count));
  }
  const PartLayout layout{.table = &table,
                          .atoms = report.atoms,
                          .step = step,
                          .generation = generation,
                          .run_id = run_id};
  ASSIGN_OR_RETURN(const LaidOutPart part, LayOutPart(layout));
  report.offsets = part.offsets;
  report.bytes = part.bytes;
  const std::vector<Piece> pieces = PayloadPieces(table, states, part.offsets);
  // Opened before the first write, this descriptor hears of every write-back error until its fsync.
  ASSIGN_OR_RETURN(File file, CreateNewFile(path));
  if (absl::Status status = FillFile(file, part, pieces, report.blocks); !status.ok()) {
    // The name stays used; the space is what others are waiting for.
    if (absl::IsResourceExhausted(status)) file.Truncate(0).IgnoreError();
    return status;
  }
  RETURN_IF_ERROR(file.Close());
  RETURN_IF_ERROR(SyncDirectory(directory));
  return report;
}

}  // namespace perdure
