#include "ckpt/store_hdf5_view.h"

#include <array>
#include <limits>

#include "ckpt/sparse_image.h"
#include "ckpt/store_hdf5_handles.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// The same tensor of one state part, out of the files that hold its pieces.
bool CreateVirtual(hid_t file, const std::string& path, const std::string& source_path,
                   const TensorSpec& tensor, std::span<const ViewPiece> pieces,
                   const std::vector<PartReport>& parts, std::span<const int64_t> lengths) {
  const hsize_t dims[] = {static_cast<hsize_t>(tensor.rows), static_cast<hsize_t>(tensor.cols)};
  const Hdf5Id space(H5Screate_simple(2, dims, nullptr)), properties = Timeless(H5P_DATASET_CREATE);
  // What a file that is gone would have held must not look like a value.
  const float missing = std::numeric_limits<float>::quiet_NaN();
  if (!space.ok() || !properties.ok() ||
      H5Pset_fill_value(properties.get(), H5T_NATIVE_FLOAT, &missing) < 0)
    return false;
  for (const ViewPiece& piece : pieces) {
    const auto part = static_cast<size_t>(piece.part);
    const hsize_t start[] = {static_cast<hsize_t>(piece.row), static_cast<hsize_t>(piece.col)};
    const hsize_t extent[] = {static_cast<hsize_t>(piece.rows), static_cast<hsize_t>(piece.cols)};
    const hsize_t first[] = {static_cast<hsize_t>(piece.element)};
    const hsize_t count[] = {extent[0] * extent[1]};
    const hsize_t length[] = {static_cast<hsize_t>(lengths[part])};
    const Hdf5Id source(H5Screate_simple(1, length, nullptr));
    if (!source.ok() ||
        H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start, nullptr, extent, nullptr) < 0 ||
        H5Sselect_hyperslab(source.get(), H5S_SELECT_SET, first, nullptr, count, nullptr) < 0 ||
        H5Pset_virtual(properties.get(), space.get(), parts[part].file.c_str(), source_path.c_str(),
                       source.get()) < 0)
      return false;
  }
  H5Sselect_all(space.get());
  return Hdf5Id(H5Dcreate2(file, path.c_str(), H5T_IEEE_F32LE, space.get(), H5P_DEFAULT,
                           properties.get(), H5P_DEFAULT))
      .ok();
}

bool CreateAll(hid_t file, const Manifest& manifest, std::span<const std::vector<ViewPiece>> pieces,
               std::span<const int64_t> lengths) {
  if (!WriteText(file, "format", "perdure view") ||
      !WriteText(file, "certificate", manifest.certificate.Hex()) ||
      !WriteAttribute(file, "step", H5T_STD_I64LE, &manifest.step))
    return false;
  for (const std::string_view part : kStateParts) {
    const std::string folder = fmt::format("/{}", part);
    const Hdf5Id properties = Timeless(H5P_GROUP_CREATE);
    const Hdf5Id group(
        H5Gcreate2(file, folder.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT));
    if (!group.ok()) return false;
    for (size_t t = 0; t < pieces.size(); ++t)
      if (!CreateVirtual(file, fmt::format("{}/{}", folder, manifest.tensors[t].name),
                         fmt::format("/state/{}", part), manifest.tensors[t], pieces[t],
                         manifest.parts, lengths))
        return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::string> LayOutView(const Manifest& manifest,
                                       std::span<const std::vector<ViewPiece>> pieces,
                                       std::span<const int64_t> lengths) {
  SparseImage image;
  const Hdf5Session session;
  Hdf5Backing backing{.image = &image};
  const Hdf5Id driver(RegisterBackingDriver());
  const Hdf5Id access = FileAccess(driver, &backing), creation = Timeless(H5P_FILE_CREATE);
  if (!access.ok() || !creation.ok()) return session.Error("prepare a view");
  const hid_t file = H5Fcreate("view", H5F_ACC_TRUNC, creation.get(), access.get());
  if (file < 0) return session.Error("create a view");
  absl::Status status;
  if (!CreateAll(file, manifest, pieces, lengths)) status = session.Error("lay out a view");
  if (H5Fclose(file) < 0 && status.ok()) status = session.Error("close a view");
  RETURN_IF_ERROR(status);
  std::string bytes(backing.bytes, '\0');
  image.Read(0, bytes.data(), bytes.size());
  return bytes;
}

}  // namespace perdure
