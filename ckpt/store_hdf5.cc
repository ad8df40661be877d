#include "ckpt/store_hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "ckpt/manifest_json.h"
#include "ckpt/part_plan.h"
#include "ckpt/store_hdf5_driver.h"
#include "ckpt/store_hdf5_handles.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr const char* kFormatName = "perdure part";
constexpr const char* kAtomsPath = "/index/atoms";
constexpr const char* kTensorsPath = "/index/tensors";
constexpr std::array<const char*, 3> kAxisNames = {"none", "rows", "cols"};
constexpr size_t kAxisBytes = 4;

// --- Types and records of the index -----------------------------------------------------------

struct AtomRow {
  int64_t atom, tensor, slice, begin, count, offset;
};
constexpr std::array<std::pair<const char*, size_t>, 6> kAtomFields = {
    {{"atom", offsetof(AtomRow, atom)},
     {"tensor", offsetof(AtomRow, tensor)},
     {"slice", offsetof(AtomRow, slice)},
     {"begin", offsetof(AtomRow, begin)},
     {"count", offsetof(AtomRow, count)},
     {"offset", offsetof(AtomRow, offset)}}};

std::vector<AtomRow> AtomRows(const PartLayout& layout) {
  std::vector<AtomRow> rows;
  rows.reserve(layout.atoms.size());
  const ElementPlaces places = PlaceElements(*layout.table, layout.atoms, layout.runs);
  for (size_t i = 0; i < layout.atoms.size(); ++i) {
    const Atom& atom = layout.table->atoms()[static_cast<size_t>(layout.atoms[i])];
    rows.push_back(
        {layout.atoms[i], atom.tensor, atom.slice, atom.begin, atom.count, places.begins[i]});
  }
  return rows;
}

int64_t Elements(const PartLayout& layout) {
  return PlaceElements(*layout.table, layout.atoms, layout.runs).length;
}

Hdf5Id AtomRowType() {
  Hdf5Id type(H5Tcreate(H5T_COMPOUND, sizeof(AtomRow)));
  for (const auto& [name, offset] : kAtomFields) {
    if (!type.ok() || H5Tinsert(type.get(), name, offset, H5T_STD_I64LE) < 0) return Hdf5Id();
  }
  return type;
}

// /index/tensors: rows, cols, slices, axis, name (padded with zeros to the longest).
struct TensorRows {
  Hdf5Id type;
  std::vector<char> bytes;
};

TensorRows MakeTensorRows(const AtomTable& table) {
  size_t name_bytes = 1;
  for (const TensorSpec& tensor : table.tensors())
    name_bytes = std::max(name_bytes, tensor.name.size());
  const size_t row_bytes = 3 * sizeof(int64_t) + kAxisBytes + name_bytes;
  TensorRows rows;
  const Hdf5Id axis = TextType(kAxisBytes), name = TextType(name_bytes);
  Hdf5Id type(H5Tcreate(H5T_COMPOUND, row_bytes));
  if (!axis.ok() || !name.ok() || !type.ok() ||
      H5Tinsert(type.get(), "rows", 0, H5T_STD_I64LE) < 0 ||
      H5Tinsert(type.get(), "cols", 8, H5T_STD_I64LE) < 0 ||
      H5Tinsert(type.get(), "slices", 16, H5T_STD_I64LE) < 0 ||
      H5Tinsert(type.get(), "axis", 24, axis.get()) < 0 ||
      H5Tinsert(type.get(), "name", 24 + kAxisBytes, name.get()) < 0)
    return rows;
  rows.type = std::move(type);
  rows.bytes.resize(row_bytes * table.tensors().size());
  char* row = rows.bytes.data();
  for (const TensorSpec& tensor : table.tensors()) {
    std::memcpy(row, &tensor.rows, 8);
    std::memcpy(row + 8, &tensor.cols, 8);
    std::memcpy(row + 16, &tensor.slices, 8);
    std::memcpy(row + 24, kAxisNames[static_cast<size_t>(tensor.axis)], kAxisBytes);
    std::memcpy(row + 24 + kAxisBytes, tensor.name.data(), tensor.name.size());
    row += row_bytes;
  }
  return rows;
}

// --- Writing ------------------------------------------------------------------------------------

bool WriteAttributes(hid_t file, const PartLayout& layout) {
  return WriteText(file, "format", kFormatName) &&
         WriteAttribute(file, "format_version", H5T_STD_I64LE, &kFormatVersion) &&
         WriteText(file, "run_id", layout.run_id) &&
         WriteAttribute(file, "step", H5T_STD_I64LE, &layout.step) &&
         WriteAttribute(file, "generation", H5T_STD_U64LE, &layout.generation);
}

bool WriteDataset(hid_t file, const char* path, hid_t type, size_t length, const void* rows) {
  const hsize_t dims[] = {length};
  Hdf5Id dataset = CreateContiguous(file, path, type, dims);
  if (!dataset.ok() ||
      (length > 0 && H5Dwrite(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows) < 0))
    return false;
  // Small writes are buffered until here; closing the file would not tell of their failure.
  return H5Dclose(dataset.Release()) >= 0;
}

bool WriteIndex(hid_t file, const PartLayout& layout) {
  const Hdf5Id properties = Timeless(H5P_GROUP_CREATE);
  const Hdf5Id group(H5Gcreate2(file, "/index", H5P_DEFAULT, properties.get(), H5P_DEFAULT));
  const Hdf5Id atom_type = AtomRowType();
  const TensorRows tensors = MakeTensorRows(*layout.table);
  if (!group.ok() || !atom_type.ok() || !tensors.type.ok()) return false;
  const std::vector<AtomRow> rows = AtomRows(layout);
  return WriteDataset(file, kAtomsPath, atom_type.get(), rows.size(), rows.data()) &&
         WriteDataset(file, kTensorsPath, tensors.type.get(), layout.table->tensors().size(),
                      tensors.bytes.data());
}

std::string StatePath(int part) { return fmt::format("/state/{}", kStateParts[part]); }

bool CreateState(hid_t file, size_t elements, std::array<uint64_t, kStatePartCount>& offsets) {
  const Hdf5Id properties = Timeless(H5P_GROUP_CREATE);
  const Hdf5Id group(H5Gcreate2(file, "/state", H5P_DEFAULT, properties.get(), H5P_DEFAULT));
  const hsize_t dims[] = {elements};
  if (!group.ok()) return false;
  for (int i = 0; i < kStatePartCount; ++i) {
    const Hdf5Id dataset = CreateContiguous(file, StatePath(i), H5T_IEEE_F32LE, dims);
    if (!dataset.ok()) return false;
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (elements > 0 && offset == HADDR_UNDEF) return false;
    offsets[static_cast<size_t>(i)] = elements > 0 ? offset : 0;
  }
  return std::is_sorted(offsets.begin(), offsets.end());
}

// --- Checking -----------------------------------------------------------------------------------

// The dataset at `path` if it is a contiguous array of `length` elements of `type` inside this
// file.
absl::StatusOr<Hdf5Id> OpenDataset(hid_t file, const std::string& path, hid_t type, size_t length) {
  Hdf5Id dataset(H5Dopen2(file, path.c_str(), H5P_DEFAULT));
  if (!dataset.ok()) return DataLoss("dataset {} does not open", path);
  const Hdf5Id actual(H5Dget_type(dataset.get())), space(H5Dget_space(dataset.get()));
  const Hdf5Id properties(H5Dget_create_plist(dataset.get()));
  if (!actual.ok() || H5Tequal(actual.get(), type) <= 0)
    return DataLoss("dataset {} has another element type", path);
  if (!properties.ok() || H5Pget_layout(properties.get()) != H5D_CONTIGUOUS ||
      H5Pget_external_count(properties.get()) != 0)
    return DataLoss("dataset {} is not contiguous inside the file", path);
  hsize_t actual_length = 0;
  if (!space.ok() || H5Sget_simple_extent_ndims(space.get()) != 1 ||
      H5Sget_simple_extent_dims(space.get(), &actual_length, nullptr) != 1 ||
      actual_length != length)
    return DataLoss("dataset {} has {} elements; the manifest says {}", path, actual_length,
                    length);
  return dataset;
}

absl::Status CheckRows(hid_t file, const char* path, const Hdf5Id& type, size_t length,
                       const void* rows, size_t bytes) {
  if (!type.ok()) return Internal("libhdf5 cannot make the types of the index");
  ASSIGN_OR_RETURN(const Hdf5Id dataset, OpenDataset(file, path, type.get(), length));
  if (length == 0) return absl::OkStatus();
  std::vector<char> actual(bytes);
  if (H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, actual.data()) < 0)
    return DataLoss("dataset {} cannot be read", path);
  if (std::memcmp(actual.data(), rows, bytes) != 0)
    return DataLoss("dataset {} is not what the manifest says", path);
  return absl::OkStatus();
}

absl::Status CheckAttribute(hid_t file, const char* name, hid_t type, const void* value,
                            size_t bytes) {
  const Hdf5Id attribute(H5Aopen(file, name, H5P_DEFAULT));
  const Hdf5Id actual(attribute.ok() ? H5Aget_type(attribute.get()) : -1);
  if (!actual.ok() || H5Tequal(actual.get(), type) <= 0)
    return DataLoss("attribute {} is missing or of another type", name);
  std::vector<char> found(bytes);
  if (H5Aget_storage_size(attribute.get()) != bytes ||
      H5Aread(attribute.get(), type, found.data()) < 0 ||
      std::memcmp(found.data(), value, bytes) != 0)
    return DataLoss("attribute {} is not what the manifest says", name);
  return absl::OkStatus();
}

absl::Status CheckText(hid_t file, const char* name, const std::string& text) {
  const Hdf5Id type = TextType(text.size());
  if (!type.ok()) return Internal("libhdf5 cannot make a text type");
  return CheckAttribute(file, name, type.get(), text.c_str(), std::max<size_t>(text.size(), 1));
}

absl::Status CheckAttributes(hid_t file, const PartLayout& layout) {
  RETURN_IF_ERROR(CheckText(file, "format", kFormatName));
  RETURN_IF_ERROR(CheckAttribute(file, "format_version", H5T_STD_I64LE, &kFormatVersion, 8));
  RETURN_IF_ERROR(CheckText(file, "run_id", layout.run_id));
  RETURN_IF_ERROR(CheckAttribute(file, "step", H5T_STD_I64LE, &layout.step, 8));
  return CheckAttribute(file, "generation", H5T_STD_U64LE, &layout.generation, 8);
}

absl::Status CheckObjects(hid_t file, const PartLayout& layout,
                          const std::array<uint64_t, kStatePartCount>& offsets) {
  RETURN_IF_ERROR(CheckAttributes(file, layout));
  const std::vector<AtomRow> atoms = AtomRows(layout);
  RETURN_IF_ERROR(CheckRows(file, kAtomsPath, AtomRowType(), atoms.size(), atoms.data(),
                            atoms.size() * sizeof(AtomRow)));
  const TensorRows tensors = MakeTensorRows(*layout.table);
  RETURN_IF_ERROR(CheckRows(file, kTensorsPath, tensors.type, layout.table->tensors().size(),
                            tensors.bytes.data(), tensors.bytes.size()));
  const size_t elements = static_cast<size_t>(Elements(layout));
  for (int i = 0; i < kStatePartCount; ++i) {
    ASSIGN_OR_RETURN(const Hdf5Id dataset,
                     OpenDataset(file, StatePath(i), H5T_IEEE_F32LE, elements));
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (elements > 0 && offset != offsets[static_cast<size_t>(i)])
      return DataLoss("dataset {} stands at byte {}; the manifest says {}", StatePath(i), offset,
                      offsets[static_cast<size_t>(i)]);
  }
  return absl::OkStatus();
}

// The file without the `run` bytes at each offset: what HDF5 itself wrote, of which there is
// little.
absl::Status ReadAllBut(const File& file, const std::array<uint64_t, kStatePartCount>& offsets,
                        uint64_t run, uint64_t bytes, SparseImage& image) {
  std::vector<char> buffer(kBlockBytes);
  uint64_t at = 0;
  const auto read_until = [&](uint64_t end) -> absl::Status {
    while (at < end) {
      const uint64_t length = std::min<uint64_t>(buffer.size(), end - at);
      iovec piece{buffer.data(), length};
      RETURN_IF_ERROR(file.ReadAt(at, {&piece, 1}));
      image.Write(at, buffer.data(), length);
      at += length;
    }
    return absl::OkStatus();
  };
  for (const uint64_t offset : offsets) {
    RETURN_IF_ERROR(read_until(std::min(offset, bytes)));
    at = std::max(at, offset + run);
  }
  return read_until(bytes);
}

}  // namespace

absl::StatusOr<LaidOutPart> LayOutPart(const PartLayout& layout) {
  LaidOutPart part;
  const Hdf5Session session;
  Hdf5Backing backing{.image = &part.image};
  const Hdf5Id driver(RegisterBackingDriver());
  const Hdf5Id access = FileAccess(driver, &backing), creation = Timeless(H5P_FILE_CREATE);
  if (!access.ok() || !creation.ok()) return session.Error("prepare a part file");
  const hid_t file = H5Fcreate("part", H5F_ACC_TRUNC, creation.get(), access.get());
  if (file < 0) return session.Error("create a part file");
  absl::Status status;
  if (!CreateState(file, static_cast<size_t>(Elements(layout)), part.offsets) ||
      !WriteIndex(file, layout) || !WriteAttributes(file, layout))
    status = session.Error("lay out a part file");
  if (H5Fclose(file) < 0 && status.ok()) status = session.Error("close a part file");
  RETURN_IF_ERROR(status);
  part.bytes = backing.bytes;
  return part;
}

absl::Status CheckPartLayout(const File& source, const PartLayout& layout,
                             const std::array<uint64_t, kStatePartCount>& offsets) {
  ASSIGN_OR_RETURN(const uint64_t bytes, source.Size());
  const uint64_t run = static_cast<uint64_t>(Elements(layout)) * sizeof(float);
  SparseImage image;
  RETURN_IF_ERROR(ReadAllBut(source, offsets, run, bytes, image));
  const Hdf5Session session;
  Hdf5Backing backing{.image = &image, .bytes = bytes};
  const Hdf5Id driver(RegisterBackingDriver());
  const Hdf5Id access = FileAccess(driver, &backing);
  if (!access.ok()) return session.Error("prepare to open " + source.path());
  const hid_t file = H5Fopen("part", H5F_ACC_RDONLY, access.get());
  absl::Status status =
      file < 0 ? session.Error("HDF5 does not open it") : CheckObjects(file, layout, offsets);
  if (file >= 0 && H5Fclose(file) < 0 && status.ok()) status = session.Error("close");
  if (!status.ok()) return DataLoss("{}: {}", source.path(), Message(status));
  return absl::OkStatus();
}

}  // namespace perdure
