//! Brigades and buckets. What the headers of APR do in macros is written out here.

use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::slice;

use highball::exchange::Block;

use super::{
    APR_FOPEN_READ, APR_FOPEN_SENDFILE_ENABLED, APR_SUCCESS, Pool, ap_bucket_error_create, ap_filter_t, ap_get_brigade,
    ap_input_mode_t_AP_MODE_READBYTES, ap_pass_brigade, apr_brigade_cleanup, apr_brigade_create, apr_brigade_destroy,
    apr_brigade_insert_file, apr_bucket, apr_bucket_alloc, apr_bucket_alloc_t, apr_bucket_brigade,
    apr_bucket_eos_create, apr_bucket_file_enable_mmap, apr_bucket_flush_create, apr_bucket_free,
    apr_bucket_heap_create, apr_bucket_refcount, apr_bucket_setaside_noop, apr_bucket_shared_copy,
    apr_bucket_shared_destroy, apr_bucket_shared_make, apr_bucket_shared_split, apr_bucket_type_eos,
    apr_bucket_type_file, apr_bucket_type_t, apr_bucket_type_t_APR_BUCKET_DATA, apr_file_dup, apr_file_t,
    apr_os_file_put, apr_read_type_e, apr_read_type_e_APR_BLOCK_READ, apr_read_type_e_APR_NONBLOCK_READ, apr_size_t,
    apr_status_t, entry,
};

/// A list of buckets of one connection. Stays on the request's thread at a time.
pub struct Brigade {
    brigade: *mut apr_bucket_brigade,
    pool: Pool,
    list: *mut apr_bucket_alloc_t,
}

impl Brigade {
    /// `list` is the bucket allocator of the request's connection, `pool` the request's.
    pub fn new(pool: Pool, list: *mut apr_bucket_alloc_t) -> Brigade {
        // SAFETY: both are alive as long as the request.
        Brigade { brigade: unsafe { apr_brigade_create(pool.as_ptr(), list) }, pool, list }
    }

    /// Adds bytes: small ones by a copy, large ones by reference.
    pub fn block(&mut self, block: Block) {
        let bytes = block.as_bytes();
        // SAFETY: without a free function APR copies the bytes; the allocator is alive.
        let bucket = unsafe {
            match bytes.len() {
                0 => return,
                1..=COPY_LIMIT => apr_bucket_heap_create(bytes.as_ptr().cast(), bytes.len(), None, self.list),
                _ => held(block, self.list),
            }
        };
        self.insert(bucket);
    }

    /// Adds a part of a file. The kernel copies it where httpd can use sendfile and `sendfile` allows it.
    pub fn file(&mut self, file: OwnedFd, offset: u64, length: u64, sendfile: bool) -> apr_status_t {
        let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else { return super::APR_EINVAL };
        let flags = APR_FOPEN_READ | if sendfile { APR_FOPEN_SENDFILE_ENABLED } else { 0 };
        let mut descriptor = file.as_raw_fd();
        let mut borrowed: *mut apr_file_t = null_mut();
        let mut owned: *mut apr_file_t = null_mut();
        // SAFETY: the descriptor is open; the copy is APR's own, with a cleanup that moves along when a filter sets the
        // bucket aside into another pool. Ours is closed at the end of this function.
        unsafe {
            let mut status = apr_os_file_put(&mut borrowed, &mut descriptor, flags, self.pool.as_ptr());
            if status == APR_SUCCESS {
                status = apr_file_dup(&mut owned, borrowed, self.pool.as_ptr());
            }
            if status != APR_SUCCESS {
                return status;
            }
            apr_brigade_insert_file(self.brigade, owned, offset, length, self.pool.as_ptr());
        }
        // A file that shrinks while it is mapped would end the process with SIGBUS.
        self.each(|bucket| {
            // SAFETY: a bucket of this brigade, of the type just made.
            unsafe {
                if (*bucket).type_ == &raw const apr_bucket_type_file {
                    apr_bucket_file_enable_mmap(bucket, 0);
                }
            }
        });
        APR_SUCCESS
    }

    pub fn flush(&mut self) {
        // SAFETY: the allocator is alive.
        self.insert(unsafe { apr_bucket_flush_create(self.list) });
    }

    pub fn end(&mut self) {
        // SAFETY: the allocator is alive.
        self.insert(unsafe { apr_bucket_eos_create(self.list) });
    }

    /// Marks the response as broken: the chunk filter withholds the last chunk, HTTP/2 resets the stream.
    pub fn broken(&mut self) {
        // SAFETY: the pool and the allocator are alive.
        self.insert(unsafe { ap_bucket_error_create(super::HTTP_BAD_GATEWAY, null(), self.pool.as_ptr(), self.list) });
    }

    /// Passes the content to the filters and leaves the brigade empty. May wait for the client.
    pub fn pass(&mut self, filters: *mut ap_filter_t) -> apr_status_t {
        // SAFETY: the filters of the request or its connection, on the thread that serves it.
        unsafe {
            let status = ap_pass_brigade(filters, self.brigade);
            apr_brigade_cleanup(self.brigade.cast());
            status
        }
    }

    /// Asks the filters for at most `bytes` bytes of the request body. Waits for the client.
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    pub fn receive(&mut self, filters: *mut ap_filter_t, bytes: usize, waits: bool) -> apr_status_t {
        let how = if waits { apr_read_type_e_APR_BLOCK_READ } else { apr_read_type_e_APR_NONBLOCK_READ };
        let bytes = bytes.min(LARGEST_READ).try_into().unwrap_or_default();
        // SAFETY: the input filters of the request, on the thread that serves it; the brigade is empty.
        unsafe { ap_get_brigade(filters, self.brigade, ap_input_mode_t_AP_MODE_READBYTES, how, bytes) }
    }

    /// Moves the first bytes into `buffer`.
    pub fn take(&mut self, buffer: &mut [u8]) -> Taken {
        let mut filled = 0;
        while let Some(bucket) = self.first() {
            // SAFETY: the bucket is in this brigade; reading gives memory that is valid until the bucket is deleted.
            let (is_end, is_metadata) =
                unsafe { ((*bucket).type_ == &raw const apr_bucket_type_eos, (*(*bucket).type_).is_metadata != 0) };
            if is_end {
                return if filled == 0 { Taken::End } else { Taken::Some(filled) };
            }
            if is_metadata {
                delete(bucket);
                continue;
            }
            let data = match read(bucket) {
                Ok(data) => data,
                Err(status) => return Taken::Failed(status),
            };
            let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) else {
                return Taken::Some(filled);
            };
            let count = data.len().min(rest.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..count), data.get(..count)) {
                to.copy_from_slice(from);
            }
            filled += count;
            if count < data.len() && split(bucket, count) != APR_SUCCESS {
                return Taken::Failed(super::APR_EGENERAL);
            }
            delete(bucket);
        }
        if filled == 0 { Taken::Nothing } else { Taken::Some(filled) }
    }

    fn insert(&mut self, bucket: *mut apr_bucket) {
        // SAFETY: APR_BRIGADE_INSERT_TAIL: the bucket is in no brigade, the sentinel and the last bucket are.
        unsafe {
            let sentinel = self.sentinel();
            let last = (*sentinel).link.prev;
            (*bucket).link.next = sentinel;
            (*bucket).link.prev = last;
            (*last).link.next = bucket;
            (*sentinel).link.prev = bucket;
        }
    }

    fn first(&self) -> Option<*mut apr_bucket> {
        let sentinel = self.sentinel();
        // SAFETY: the sentinel's links are always set.
        let first = unsafe { (*sentinel).link.next };
        (first != sentinel).then_some(first)
    }

    fn each(&self, mut f: impl FnMut(*mut apr_bucket)) {
        let sentinel = self.sentinel();
        let mut next = self.first();
        while let Some(bucket) = next {
            f(bucket);
            // SAFETY: a bucket of this brigade.
            next = Some(unsafe { (*bucket).link.next }).filter(|next| *next != sentinel);
        }
    }

    /// APR_BRIGADE_SENTINEL: the list's head, seen as the bucket whose links it would be.
    fn sentinel(&self) -> *mut apr_bucket {
        // SAFETY: the brigade is alive; only the links of the result are used.
        unsafe { (&raw mut (*self.brigade).list).byte_sub(offset_of!(apr_bucket, link)).cast() }
    }
}

impl Drop for Brigade {
    fn drop(&mut self) {
        // SAFETY: made in `new`; the request is still alive, as its exchange ends before it.
        unsafe { apr_brigade_destroy(self.brigade) };
    }
}

/// What came of [`Brigade::take`].
pub enum Taken {
    Some(usize),
    /// The brigade is empty; there may be more.
    Nothing,
    End,
    Failed(apr_status_t),
}

fn read<'a>(bucket: *mut apr_bucket) -> Result<&'a [u8], apr_status_t> {
    let mut data: *const c_char = null();
    let mut length: apr_size_t = 0;
    // SAFETY: apr_bucket_read: every type has this function; the result lives until the bucket is deleted, which the
    // caller does after its use.
    unsafe {
        let Some(read) = (*(*bucket).type_).read else { return Ok(&[]) };
        match read(bucket, &mut data, &mut length, apr_read_type_e_APR_BLOCK_READ) {
            APR_SUCCESS if length == 0 => Ok(&[]),
            APR_SUCCESS => Ok(slice::from_raw_parts(data.cast(), length as usize)),
            status => Err(status),
        }
    }
}

fn split(bucket: *mut apr_bucket, point: usize) -> apr_status_t {
    // SAFETY: apr_bucket_split, on a bucket that was just read.
    unsafe { (*(*bucket).type_).split.map_or(APR_SUCCESS, |split| split(bucket, point as apr_size_t)) }
}

/// apr_bucket_delete: out of its list, then destroyed and freed.
fn delete(bucket: *mut apr_bucket) {
    // SAFETY: the bucket is in a list and used no more.
    unsafe {
        let (next, previous) = ((*bucket).link.next, (*bucket).link.prev);
        (*previous).link.next = next;
        (*next).link.prev = previous;
        if let Some(destroy) = (*(*bucket).type_).destroy {
            destroy((*bucket).data);
        }
        if let Some(free) = (*bucket).free {
            free(bucket.cast());
        }
    }
}

/// A block that a bucket refers to, possibly several after a split. APR counts, without atomics: the buckets of one
/// response are used by one thread at a time.
#[repr(C)]
struct Held {
    count: apr_bucket_refcount,
    block: Block,
}

/// # Safety
/// `list` is alive.
unsafe fn held(block: Block, list: *mut apr_bucket_alloc_t) -> *mut apr_bucket {
    let length = block.as_bytes().len();
    let data = Box::into_raw(Box::new(Held { count: apr_bucket_refcount { refcount: 0 }, block }));
    // SAFETY: APR_BUCKET_INIT, then apr_bucket_shared_make, which sets data, start, length and the count at its head.
    unsafe {
        let bucket = apr_bucket_alloc(size_of::<apr_bucket>() as apr_size_t, list).cast::<apr_bucket>();
        (*bucket).link.next = bucket;
        (*bucket).link.prev = bucket;
        (*bucket).free = Some(apr_bucket_free);
        (*bucket).list = list;
        let bucket = apr_bucket_shared_make(bucket, data.cast(), 0, length as apr_size_t);
        (*bucket).type_ = &raw const HELD_TYPE.0;
        bucket
    }
}

#[repr(transparent)]
struct BucketType(apr_bucket_type_t);

// SAFETY: constant, with a pointer to a string literal.
unsafe impl Sync for BucketType {}

static HELD_TYPE: BucketType = BucketType(apr_bucket_type_t {
    name: c"HIGHBALL".as_ptr(),
    num_func: 5,
    is_metadata: apr_bucket_type_t_APR_BUCKET_DATA,
    destroy: Some(destroy_held),
    read: Some(read_held),
    // The block is ours until the bucket is destroyed, whatever pool it is set aside into.
    setaside: Some(apr_bucket_setaside_noop),
    split: Some(apr_bucket_shared_split),
    copy: Some(apr_bucket_shared_copy),
});

entry! {
    fn destroy_held(data: *mut c_void) -> (), else (), {
        // SAFETY: APR gives back what `held` made; the count says whether it was the last use.
        unsafe {
            if apr_bucket_shared_destroy(data) != 0 {
                drop(Box::from_raw(data.cast::<Held>()));
            }
        }
    }

    fn read_held(
        bucket: *mut apr_bucket, data: *mut *const c_char, length: *mut apr_size_t, _block: apr_read_type_e,
    ) -> apr_status_t, else super::APR_EGENERAL, {
        // SAFETY: a bucket of this type; `start` and `length` stay within the block.
        unsafe {
            let held = &*(*bucket).data.cast::<Held>();
            *data = held.block.as_bytes().as_ptr().cast::<c_char>().offset((*bucket).start as isize);
            *length = (*bucket).length;
        }
        APR_SUCCESS
    }
}

/// Copying up to this costs less than carrying a reference.
const COPY_LIMIT: usize = 16 * 1024;

/// What one call asks the input filters for at most.
const LARGEST_READ: usize = 1 << 20;
