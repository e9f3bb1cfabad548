//! The commands of bpf(2) on maps, one entry or many at a time, and on links to cgroups.
//!
//! aya has no batch commands; with them a table of 100,000 entries is written three times and read eight
//! times as fast as entry by entry. Having raw commands for those anyway, all map access goes through here,
//! and aya keeps loading, pinning and attaching; but for links to cgroups, which it cannot give another program.

use std::{
    ffi::CString,
    io,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_btf_info, bpf_cmd, bpf_link_info, bpf_map_info, bpf_prog_info,
};

/// What older kernels answer when a map type has no batch commands (not in libc: it is internal to the kernel).
pub(crate) const ENOTSUPP: i32 = 524;

/// What a batch command did.
pub(crate) struct Batch {
    /// Entries read, written or deleted before it stopped.
    pub count: u32,
    /// Why it stopped early, if it did.
    pub error: Option<io::Error>,
}

fn attributes() -> bpf_attr {
    // SAFETY: a union of plain integers and structs of them; all zero is what the kernel expects of the
    // fields that a command does not use.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// # Safety
/// Every address in `attributes` that `command` reads or writes is valid for the map's sizes.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: passed on to the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn element(map: BorrowedFd<'_>, key: *const u8, value: *mut u8) -> bpf_attr {
    let mut attributes = attributes();
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value as u64;
    attributes
}

/// Reads the value of a key into `value`.
///
/// # Safety
/// `key` and `value` point to as many bytes as the map's key and (for per-CPU maps: all) values have.
pub(crate) unsafe fn lookup(map: BorrowedFd<'_>, key: *const u8, value: *mut u8) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut element(map, key, value)) }.map(drop)
}

/// What becomes of an entry whose key is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    /// It gets the new value.
    Replace,
    /// It stays as it is (`EEXIST`).
    Keep,
}

impl Present {
    const fn flags(self) -> u64 {
        match self {
            Self::Replace => 0,
            // BPF_NOEXIST
            Self::Keep => 1,
        }
    }
}

/// Writes an entry.
///
/// # Safety
/// As for [`lookup`].
pub(crate) unsafe fn update(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *const u8,
    present: Present,
) -> io::Result<()> {
    let mut attributes = element(map, key, value.cast_mut());
    attributes.__bindgen_anon_2.flags = present.flags();
    // SAFETY: the caller's promise; the kernel only reads the value.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Deletes an entry.
///
/// # Safety
/// `key` points to as many bytes as the map's key has.
pub(crate) unsafe fn delete(map: BorrowedFd<'_>, key: *const u8) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut element(map, key, std::ptr::null_mut())) }.map(drop)
}

/// Finds the key after `key`, or the first one where `key` is null or gone.
///
/// # Safety
/// `key` (unless null) and `next` point to as many bytes as the map's key has.
pub(crate) unsafe fn next_key(map: BorrowedFd<'_>, key: *const u8, next: *mut u8) -> io::Result<()> {
    // SAFETY: the caller's promise; `next_key` lies where `value` does.
    unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut element(map, key, next)) }.map(drop)
}

/// Where in a map a batch lookup stands.
pub(crate) struct Cursor {
    /// As long as the map's key, and at least the four bytes that hash maps use.
    bytes: Vec<u8>,
    started: bool,
}

impl Cursor {
    pub(crate) fn new(key_size: usize) -> Self {
        Self { bytes: vec![0; key_size.max(size_of::<u32>())], started: false }
    }
}

/// Reads up to `room` further entries.
///
/// # Safety
/// `keys` and `values` have space for `room` keys and values of the map.
pub(crate) unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: *mut u8,
    values: *mut u8,
    room: u32,
) -> Batch {
    let mut next = Cursor { bytes: vec![0; cursor.bytes.len()], started: true };
    let mut attributes = attributes();
    attributes.batch.in_batch = if cursor.started { cursor.bytes.as_ptr() as u64 } else { 0 };
    attributes.batch.out_batch = next.bytes.as_mut_ptr() as u64;
    attributes.batch.keys = keys as u64;
    attributes.batch.values = values as u64;
    attributes.batch.count = room;
    attributes.batch.map_fd = map.as_raw_fd() as u32;
    // SAFETY: the caller's promise; both cursors are as long as the kernel's.
    let batch = unsafe { run_batch(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) };
    // ENOSPC: the next bucket has more entries than there was room for; nothing moved.
    if batch.error.as_ref().and_then(io::Error::raw_os_error) != Some(libc::ENOSPC) {
        *cursor = next;
    }
    batch
}

/// Writes `count` entries.
///
/// # Safety
/// `keys` and `values` hold `count` keys and values of the map.
pub(crate) unsafe fn update_batch(
    map: BorrowedFd<'_>,
    keys: *const u8,
    values: *const u8,
    count: u32,
    present: Present,
) -> Batch {
    let mut attributes = many(map, keys, values, count);
    attributes.batch.elem_flags = present.flags();
    // SAFETY: the caller's promise.
    unsafe { run_batch(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attributes) }
}

/// Deletes `count` entries; stops at the first that is not there.
///
/// # Safety
/// `keys` holds `count` keys of the map.
pub(crate) unsafe fn delete_batch(map: BorrowedFd<'_>, keys: *const u8, count: u32) -> Batch {
    // SAFETY: the caller's promise.
    unsafe { run_batch(bpf_cmd::BPF_MAP_DELETE_BATCH, &mut many(map, keys, std::ptr::null(), count)) }
}

fn many(map: BorrowedFd<'_>, keys: *const u8, values: *const u8, count: u32) -> bpf_attr {
    let mut attributes = attributes();
    attributes.batch.keys = keys as u64;
    attributes.batch.values = values as u64;
    attributes.batch.count = count;
    attributes.batch.map_fd = map.as_raw_fd() as u32;
    attributes
}

/// # Safety
/// As for [`bpf`].
unsafe fn run_batch(command: bpf_cmd, attributes: &mut bpf_attr) -> Batch {
    // SAFETY: the caller's promise.
    let error = unsafe { bpf(command, attributes) }.err();
    let unsupported = matches!(
        error.as_ref().and_then(io::Error::raw_os_error),
        Some(libc::EINVAL | ENOTSUPP | libc::EFAULT)
    );
    // SAFETY: the kernel wrote the count, except where it refused the command as a whole.
    let count = if unsupported { 0 } else { unsafe { attributes.batch.count } };
    Batch { count, error }
}

/// What the kernel says of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    // SAFETY: plain integers; zero is valid.
    let mut info: bpf_map_info = unsafe { MaybeUninit::zeroed().assume_init() };
    describe(map, &mut info)?;
    Ok(info)
}

/// A map's name in the kernel, cut off at 15 bytes there.
pub(crate) fn is_named(info: &bpf_map_info, name: &str) -> bool {
    let bytes = info.name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0);
    bytes.eq(name.bytes().take(info.name.len() - 1))
}

/// The numbers of the maps that a loaded program uses.
pub(crate) fn program_map_ids(program_id: u32) -> io::Result<Vec<u32>> {
    let program = by_id(bpf_cmd::BPF_PROG_GET_FD_BY_ID, program_id)?;
    // SAFETY: plain integers; zero is valid.
    let mut info: bpf_prog_info = unsafe { MaybeUninit::zeroed().assume_init() };
    describe(program.as_fd(), &mut info)?;
    let mut ids = vec![0u32; info.nr_map_ids as usize];
    // SAFETY: as above.
    let mut info: bpf_prog_info = unsafe { MaybeUninit::zeroed().assume_init() };
    info.nr_map_ids = ids.len() as u32;
    info.map_ids = ids.as_mut_ptr() as u64;
    describe(program.as_fd(), &mut info)?;
    Ok(ids)
}

/// A map by its number.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    by_id(bpf_cmd::BPF_MAP_GET_FD_BY_ID, id)
}

/// The type information that maps were made with, by its number, as in an object's `.BTF` section.
pub(crate) fn btf(id: u32) -> io::Result<Vec<u8>> {
    let btf = by_id(bpf_cmd::BPF_BTF_GET_FD_BY_ID, id)?;
    // SAFETY: plain integers; zero is valid.
    let mut info: bpf_btf_info = unsafe { MaybeUninit::zeroed().assume_init() };
    describe(btf.as_fd(), &mut info)?;
    let mut bytes = vec![0u8; info.btf_size as usize];
    // SAFETY: as above.
    let mut info: bpf_btf_info = unsafe { MaybeUninit::zeroed().assume_init() };
    info.btf = bytes.as_mut_ptr() as u64;
    info.btf_size = bytes.len() as u32;
    describe(btf.as_fd(), &mut info)?;
    Ok(bytes)
}

fn by_id(command: bpf_cmd, id: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    // SAFETY: numbers only.
    let fd = unsafe { bpf(command, &mut attributes) }?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Fills the `bpf_*_info` that belongs to the object.
fn describe<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.info.bpf_fd = object.as_raw_fd() as u32;
    attributes.info.info_len = size_of::<T>() as u32;
    attributes.info.info = std::ptr::from_mut(info) as u64;
    // SAFETY: `info` has that many bytes; where it points to buffers, they are as long as it says.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// What the kernel says of a link to a cgroup.
pub(crate) struct CgroupLink {
    pub program_id: u32,
    /// Inode of the cgroup; 0 when it has gone.
    pub cgroup_id: u64,
}

/// Asks a link to a cgroup.
pub(crate) fn cgroup_link(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    // SAFETY: plain integers; zero is valid.
    let mut info: bpf_link_info = unsafe { MaybeUninit::zeroed().assume_init() };
    describe(link, &mut info)?;
    // SAFETY: integers, of which the kernel wrote those of this kind of link; others read as numbers too.
    let cgroup_id = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    Ok(CgroupLink { program_id: info.prog_id, cgroup_id })
}

/// An XDP link, as the kernel describes it.
pub(crate) struct DeviceLink {
    pub program_id: u32,
    /// 0 when the device has gone.
    pub ifindex: u32,
}

/// Asks a link to a device.
pub(crate) fn device_link(link: BorrowedFd<'_>) -> io::Result<DeviceLink> {
    // SAFETY: plain integers; zero is valid.
    let mut info: bpf_link_info = unsafe { MaybeUninit::zeroed().assume_init() };
    describe(link, &mut info)?;
    // SAFETY: as in `cgroup_link`.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(DeviceLink { program_id: info.prog_id, ifindex })
}

/// Attaches an XDP program to a device (`flags`: driver or kernel); it stays attached as long as the link or a pin of it
/// lives.
pub(crate) fn create_device_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attributes.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attributes.link_create.flags = flags;
    // SAFETY: numbers only.
    let fd = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a program to a cgroup, beside others; it works there as long as the link or a pin of it lives.
pub(crate) fn create_link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attributes = attributes();
    attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attributes.link_create.__bindgen_anon_2.target_fd = cgroup.as_raw_fd() as u32;
    attributes.link_create.attach_type = attach_type as u32;
    // SAFETY: numbers only.
    let fd = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Ends what a link does, at once. (Without its last pin and descriptor it ends as well, but when the kernel comes to it.)
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_detach.link_fd = link.as_raw_fd() as u32;
    // SAFETY: numbers only.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// Gives a link another program, with no moment without one.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = attributes();
    attributes.link_update.link_fd = link.as_raw_fd() as u32;
    attributes.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    // SAFETY: numbers only.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = attributes();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    // SAFETY: the path ends with a zero and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what is pinned there.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = attributes();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: as in `pin`.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
