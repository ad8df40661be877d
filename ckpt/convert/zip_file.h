// The zip files that torch.save makes: stored records, zip64, read in place.
//
// Sizes come from the central directory, the place of the data from each record's local header.
// Checked before anything else is read: both agree on the name, nothing is compressed or encrypted,
// names are plain and unique and share one top folder, records neither overlap nor leave the
// archive. A Zip says where records stand; reading them goes through the file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ckpt/file_io.h"

namespace perdure {

struct ZipRecord {
  std::string name;     // Without the top folder: "data/0".
  uint64_t offset = 0;  // Of its data in the file.
  uint64_t bytes = 0;
  uint32_t crc = 0;
};

class ZipFile {
 public:
  // The archive is bytes [offset, offset + bytes) of the file; `what` names it in messages.
  static absl::StatusOr<ZipFile> Open(const File& file, uint64_t offset, uint64_t bytes,
                                      std::string what);

  const std::vector<ZipRecord>& records() const { return records_; }  // By place.
  // Null when there is none.
  const ZipRecord* Find(std::string_view name) const;

 private:
  std::vector<ZipRecord> records_;
  std::map<std::string, size_t, std::less<>> by_name_;
};

// The whole record, its CRC compared: DataLoss. `bytes_max` bounds what is read.
absl::StatusOr<std::string> ReadZipRecord(const File& file, const ZipRecord& record,
                                          uint64_t bytes_max, std::string_view what);

// Reads a record in pieces and compares its CRC: DataLoss. `tell` hears how many bytes were read.
absl::Status VerifyZipRecord(const File& file, const ZipRecord& record, std::string_view what,
                             const std::function<void(uint64_t bytes)>& tell = nullptr);

}  // namespace perdure
