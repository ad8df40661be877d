#include "ckpt/store_hdf5_handles.h"

#include <algorithm>

#include "ckpt/store_hdf5.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

std::mutex& LibraryMutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

Hdf5Session::Hdf5Session() : lock_(LibraryMutex()) {
  H5open();
  H5PLset_loading_state(0);
  H5Eget_auto2(H5E_DEFAULT, &print_, &print_data_);
  H5Eset_auto2(H5E_DEFAULT, &Hdf5Session::OnError, this);
}

Hdf5Session::~Hdf5Session() { H5Eset_auto2(H5E_DEFAULT, print_, print_data_); }

absl::Status Hdf5Session::Error(std::string_view what) const {
  return Internal("{}: libhdf5: {}", what, first_.empty() ? "no reason given" : first_);
}

herr_t Hdf5Session::OnError(hid_t stack, void* self) {
  return H5Ewalk2(stack, H5E_WALK_UPWARD, &Hdf5Session::OnEntry, self);  // Innermost first.
}

herr_t Hdf5Session::OnEntry(unsigned, const H5E_error2_t* entry, void* self) {
  std::string& first = static_cast<Hdf5Session*>(self)->first_;
  if (first.empty() && entry->desc != nullptr) first = entry->desc;
  return 0;
}

Hdf5Id TextType(size_t bytes) {
  Hdf5Id type(H5Tcopy(H5T_C_S1));
  if (!type.ok() || H5Tset_size(type.get(), std::max<size_t>(bytes, 1)) < 0 ||
      H5Tset_strpad(type.get(), H5T_STR_NULLPAD) < 0 || H5Tset_cset(type.get(), H5T_CSET_UTF8) < 0)
    return Hdf5Id();
  return type;
}

Hdf5Id FileAccess(const Hdf5Id& driver, Hdf5Backing* backing) {
  Hdf5Id access(H5Pcreate(H5P_FILE_ACCESS));
  if (!access.ok() || !driver.ok() || SetBackingDriver(access.get(), driver.get(), backing) < 0 ||
      // The version 3 superblock carries a write mark: a file that was not closed does not open.
      H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110) < 0 ||
      H5Pset_alignment(access.get(), kAlignedDatasetBytes, kBlockBytes) < 0 ||
      H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG) < 0)
    return Hdf5Id();
  return access;
}

Hdf5Id Timeless(hid_t kind) {
  Hdf5Id properties(H5Pcreate(kind));
  if (!properties.ok() || H5Pset_obj_track_times(properties.get(), false) < 0) return Hdf5Id();
  return properties;
}

bool WriteAttribute(hid_t object, const char* name, hid_t type, const void* value) {
  const Hdf5Id space(H5Screate(H5S_SCALAR));
  const Hdf5Id attribute(H5Acreate2(object, name, type, space.get(), H5P_DEFAULT, H5P_DEFAULT));
  return attribute.ok() && H5Awrite(attribute.get(), type, value) >= 0;
}

bool WriteText(hid_t object, const char* name, const std::string& text) {
  const Hdf5Id type = TextType(text.size());
  return type.ok() && WriteAttribute(object, name, type.get(), text.c_str());
}

Hdf5Id CreateContiguous(hid_t file, const std::string& path, hid_t type,
                        std::span<const hsize_t> dims) {
  const Hdf5Id space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr));
  const Hdf5Id properties = Timeless(H5P_DATASET_CREATE);
  if (!space.ok() || !properties.ok() || H5Pset_layout(properties.get(), H5D_CONTIGUOUS) < 0 ||
      H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY) < 0 ||
      H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER) < 0)
    return Hdf5Id();
  return Hdf5Id(H5Dcreate2(file, path.c_str(), type, space.get(), H5P_DEFAULT, properties.get(),
                           H5P_DEFAULT));
}

}  // namespace perdure
