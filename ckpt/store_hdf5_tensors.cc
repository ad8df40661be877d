#include "ckpt/store_hdf5_tensors.h"

#include "ckpt/store_hdf5_handles.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// HDF5 has no name for bfloat16, but it can be told what its bits mean.
Hdf5Id TensorType(TensorDType dtype) {
  Hdf5Id type(H5Tcopy(H5T_IEEE_F32LE));
  if (!type.ok() || dtype == TensorDType::kF32) return type;
  if (H5Tset_fields(type.get(), 15, 7, 8, 0, 7) < 0 || H5Tset_size(type.get(), 2) < 0 ||
      H5Tset_ebias(type.get(), 127) < 0)
    return Hdf5Id();
  return type;
}

bool WriteAbout(hid_t root, const TensorFile& about) {
  constexpr int64_t kVersion = 1;
  return WriteText(root, "format", "perdure parameters") &&
         WriteAttribute(root, "format_version", H5T_STD_I64LE, &kVersion) &&
         WriteText(root, "run_id", about.run_id) &&
         WriteAttribute(root, "step", H5T_STD_I64LE, &about.step) &&
         WriteText(root, "certificate", about.certificate);
}

bool CreateTensors(hid_t root, const TensorFile& about, std::vector<uint64_t>& offsets) {
  const Hdf5Id type = TensorType(about.dtype);
  if (!type.ok()) return false;
  for (const TensorSpec& tensor : about.tensors) {
    const hsize_t dims[] = {static_cast<hsize_t>(tensor.rows), static_cast<hsize_t>(tensor.cols)};
    const Hdf5Id dataset = CreateContiguous(root, "/" + tensor.name, type.get(), dims);
    if (!dataset.ok()) return false;
    const haddr_t offset = H5Dget_offset(dataset.get());
    if (offset == HADDR_UNDEF) return false;
    offsets.push_back(offset);
  }
  return true;
}

}  // namespace

absl::StatusOr<LaidOutTensors> LayOutTensors(const TensorFile& about) {
  LaidOutTensors laid;
  const Hdf5Session session;
  Hdf5Backing backing{.image = &laid.image};
  const Hdf5Id driver(RegisterBackingDriver());
  const Hdf5Id access = FileAccess(driver, &backing), creation = Timeless(H5P_FILE_CREATE);
  if (!access.ok() || !creation.ok()) return session.Error("prepare a file of tensors");
  const hid_t file = H5Fcreate("tensors", H5F_ACC_TRUNC, creation.get(), access.get());
  if (file < 0) return session.Error("create a file of tensors");
  absl::Status status;
  if (!CreateTensors(file, about, laid.offsets) || !WriteAbout(file, about))
    status = session.Error("lay out a file of tensors");
  if (H5Fclose(file) < 0 && status.ok()) status = session.Error("close a file of tensors");
  RETURN_IF_ERROR(status);
  laid.bytes = backing.bytes;
  return laid;
}

}  // namespace perdure
