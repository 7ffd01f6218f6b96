//! `request_rec`: what the module reads of a request and sets of its response.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::RawFd;
use std::ptr::null_mut;
use std::time::Duration;

use super::brigade::Brigade;
use super::table::Table;
use super::{
    AP_MPMQ_STOPPING, APR_SUCCESS, Pool, ap_allow_options, ap_conn_keepalive_e_AP_CONN_CLOSE, ap_context_document_root,
    ap_context_prefix, ap_document_root, ap_escape_html2, ap_filter_t, ap_find_path_info, ap_get_conn_socket,
    ap_get_core_module_config, ap_get_limit_req_body, ap_get_server_name_for_url, ap_get_server_port,
    ap_remove_output_filter_byhandle, ap_run_http_scheme, ap_set_content_length, ap_set_content_type, apr_filetype_e,
    apr_hash_get, apr_os_sock_get, apr_os_sock_t, apr_table_addn, apr_table_setn, conn_rec, core_dir_config, mpm_query,
    request_rec, server_rec, some_text, text,
};

/// A request while a hook of ours runs with it. Any thread, one at a time.
#[derive(Clone, Copy)]
pub struct Rec(*mut request_rec);

// SAFETY: the request's structures are plain memory that belongs to whoever serves the request; httpd's thread waits
// in our handler meanwhile, and the core lets one thread at a time use the exchange.
unsafe impl Send for Rec {}

impl Rec {
    /// # Safety
    /// `r` is the request of the hook that is running; the value is not used after the hook has returned.
    pub unsafe fn new(r: *mut request_rec) -> Rec {
        Rec(r)
    }

    pub fn as_ptr(self) -> *mut request_rec {
        self.0
    }

    fn get(&self) -> &request_rec {
        // SAFETY: as `new` demands; no reference of httpd's own exists while our code runs.
        unsafe { &*self.0 }
    }

    fn set(&mut self) -> &mut request_rec {
        // SAFETY: as above.
        unsafe { &mut *self.0 }
    }

    fn connection(&self) -> &conn_rec {
        // SAFETY: a request has a connection that outlives it.
        unsafe { &*self.get().connection }
    }

    fn set_connection(&mut self) -> &mut conn_rec {
        // SAFETY: as above.
        unsafe { &mut *self.get().connection }
    }

    pub fn pool(self) -> Pool {
        Pool::new(self.get().pool)
    }

    pub fn server(self) -> *mut server_rec {
        self.get().server
    }

    pub fn method(&self) -> &[u8] {
        text(self.get().method)
    }

    pub fn protocol(&self) -> &[u8] {
        text(self.get().protocol)
    }

    /// Major and minor number, as 1001.
    pub fn protocol_number(&self) -> c_int {
        self.get().proto_num
    }

    /// Whether the request is a stream of HTTP/2, and its request line of httpd's making.
    pub fn is_stream(&self) -> bool {
        !self.connection().master.is_null()
    }

    /// The path, decoded and normalised.
    pub fn uri(&self) -> &[u8] {
        text(self.get().uri)
    }

    pub fn arguments(&self) -> &[u8] {
        text(self.get().args)
    }

    pub fn request_line(&self) -> &[u8] {
        text(self.get().the_request)
    }

    pub fn filename(&self) -> &[u8] {
        text(self.get().filename)
    }

    pub fn path_info(&self) -> &[u8] {
        text(self.get().path_info)
    }

    /// How much of the path stands before PATH_INFO.
    pub fn script_name_length(&self) -> usize {
        if self.path_info().is_empty() {
            return self.uri().len();
        }
        // SAFETY: both are C strings of the request.
        usize::try_from(unsafe { ap_find_path_info(self.get().uri, self.get().path_info) }).unwrap_or_default()
    }

    pub fn handler(&self) -> &[u8] {
        text(self.get().handler)
    }

    pub fn user(&self) -> Option<&[u8]> {
        some_text(self.get().user)
    }

    pub fn auth_type(&self) -> Option<&[u8]> {
        some_text(self.get().ap_auth_type)
    }

    /// The request this one was redirected from inside the server.
    pub fn previous(&self) -> Option<Rec> {
        Some(Rec(self.get().prev)).filter(|previous| !previous.0.is_null())
    }

    pub fn headers(&self) -> Table<'_> {
        Table::new(self.get().headers_in)
    }

    pub fn variables(&self) -> Table<'_> {
        Table::new(self.get().subprocess_env)
    }

    /// What modules tell one another of this request.
    pub fn note(&self, name: &CStr) -> Option<&[u8]> {
        Table::new(self.get().notes).get(name)
    }

    pub fn set_note(&mut self, name: &'static CStr, value: &[u8]) {
        let value = self.pool().string(value);
        // SAFETY: the table and the value are of the same pool; the name is for ever.
        unsafe { apr_table_setn(self.get().notes, name.as_ptr(), value) };
    }

    /// What notes or else variables have under a name.
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        let key = super::c_string(name);
        self.note(&key).or_else(|| self.variables().get(&key))
    }

    pub fn client_address(&self) -> &[u8] {
        text(self.get().useragent_ip)
    }

    /// 0 where whoever named the client did not name its port.
    pub fn client_port(&self) -> u16 {
        // SAFETY: the address is the connection's, or of mod_remoteip's making, in the pool of either.
        unsafe { self.get().useragent_addr.as_ref() }.map_or(0, |address| address.port)
    }

    pub fn local_address(&self) -> &[u8] {
        text(self.connection().local_ip)
    }

    /// As in URLs and links: httpd escapes what a Host header may have brought.
    pub fn server_name(&self) -> &[u8] {
        // SAFETY: the request is alive; the result is in its pool or in the configuration.
        let name = text(unsafe { ap_get_server_name_for_url(self.0) });
        if !name.iter().any(|byte| b"<>&\"".contains(byte)) {
            return name;
        }
        // SAFETY: as above.
        text(unsafe { ap_escape_html2(self.get().pool, name.as_ptr().cast(), 0) })
    }

    pub fn server_port(&self) -> u16 {
        // SAFETY: the request is alive.
        unsafe { ap_get_server_port(self.0) }
    }

    pub fn server_admin(&self) -> Option<&[u8]> {
        // SAFETY: a request has a server.
        some_text(unsafe { (*self.get().server).server_admin })
    }

    pub fn scheme(&self) -> &[u8] {
        // SAFETY: the request is alive; the result is a constant or in its pool.
        text(unsafe { ap_run_http_scheme(self.0) })
    }

    pub fn document_root(&self) -> &[u8] {
        // SAFETY: as above.
        text(unsafe { ap_document_root(self.0) })
    }

    pub fn context_prefix(&self) -> &[u8] {
        // SAFETY: as above.
        text(unsafe { ap_context_prefix(self.0) })
    }

    pub fn context_document_root(&self) -> &[u8] {
        // SAFETY: as above.
        text(unsafe { ap_context_document_root(self.0) })
    }

    /// `LimitRequestBody`; `None` is no limit.
    pub fn body_limit(&self) -> Option<u64> {
        // SAFETY: as above.
        u64::try_from(unsafe { ap_get_limit_req_body(self.0) }).ok().filter(|limit| *limit > 0)
    }

    /// Whether `Options` has this bit here.
    pub fn allows(&self, option: c_int) -> bool {
        // SAFETY: as above.
        let allowed = unsafe { ap_allow_options(self.0) };
        allowed & option != 0
    }

    /// What the file walk found at the file name.
    pub fn file_type(&self) -> apr_filetype_e {
        self.get().finfo.filetype
    }

    /// `AcceptPathInfo`, or what a module decided.
    pub fn path_info_rule(&self) -> c_int {
        self.get().used_path_info
    }

    /// The core's settings of this place.
    fn core(&self) -> Option<&core_dir_config> {
        // SAFETY: httpd's core keeps its own structure there.
        unsafe { ap_get_core_module_config(self.get().per_dir_config).cast::<core_dir_config>().as_ref() }
    }

    /// `CGIPassAuth On`.
    pub fn passes_auth(&self) -> bool {
        self.core().is_some_and(|core| core.cgi_pass_auth() == super::AP_CGI_PASS_AUTH_ON as u32)
    }

    /// `EnableSendfile Off`, as written.
    pub fn forbids_sendfile(&self) -> bool {
        self.core().is_some_and(|core| core.enable_sendfile() == super::ENABLE_SENDFILE_OFF as u32)
    }

    /// `CGIVar REQUEST_URI current-uri`.
    pub fn wants_current_uri(&self) -> bool {
        let rules = self.core().map_or(null_mut(), |core| core.cgi_var_rules);
        if rules.is_null() {
            return false;
        }
        let name = c"REQUEST_URI";
        // SAFETY: a table of C strings; the key's length is given.
        let rule = unsafe { apr_hash_get(rules, name.as_ptr().cast(), name.count_bytes() as _) };
        text(rule.cast()) == b"current-uri"
    }

    pub fn settings(self) -> *mut super::ap_conf_vector_t {
        self.get().per_dir_config
    }

    /// Maps the request to a file, for the walk over directories that follows.
    pub fn map(&mut self, filename: *mut c_char, handler: &'static CStr) {
        let request = self.set();
        request.filename = filename;
        request.canonical_filename = filename;
        request.handler = handler.as_ptr();
    }

    pub fn status(&self) -> c_int {
        self.get().status
    }

    /// Whether this request is a part of another's page.
    pub fn is_subrequest(&self) -> bool {
        !self.get().main.is_null()
    }

    /// Whether httpd runs this request as the ErrorDocument of another.
    pub fn is_error_page(&self) -> bool {
        self.previous().is_some() && self.status() >= 400
    }

    pub fn set_status(&mut self, status: u16, line: Option<*mut c_char>) {
        let request = self.set();
        request.status = status.into();
        request.status_line = line.unwrap_or(null_mut());
    }

    /// Byte for byte; without one, what httpd derived from the script's file name goes too.
    pub fn set_content_type(&mut self, value: Option<*mut c_char>) {
        let request = self.set();
        request.content_encoding = std::ptr::null();
        request.content_languages = null_mut();
        // SAFETY: the request is alive, the value in its pool.
        unsafe { ap_set_content_type(self.0, value.unwrap_or(null_mut())) };
    }

    pub fn set_content_length(&mut self, length: u64) {
        // SAFETY: the request is alive.
        unsafe { ap_set_content_length(self.0, length.try_into().unwrap_or(i64::MAX)) };
    }

    /// Adds a response header; both strings are in the request's pool.
    pub fn add_header(&mut self, name: *mut c_char, value: *mut c_char) {
        // SAFETY: the table and the strings are of the same pool.
        unsafe { apr_table_addn(self.get().headers_out, name, value) };
    }

    /// Asks for a password, also in an error page of httpd's; the string is in the request's pool.
    pub fn add_challenge(&mut self, value: *mut c_char) {
        // SAFETY: the table and the string are of the same pool.
        unsafe { apr_table_addn(self.get().err_headers_out, c"WWW-Authenticate".as_ptr(), value) };
    }

    pub fn response_headers(&self) -> Table<'_> {
        Table::new(self.get().headers_out)
    }

    /// A range of the response is the application's to answer, not httpd's to cut.
    pub fn leave_ranges_alone(&mut self) {
        if self.headers().get(c"Range").is_some() {
            // SAFETY: the filters of this request; the name is the filter's.
            unsafe { ap_remove_output_filter_byhandle(self.get().output_filters, c"byterange".as_ptr()) };
        }
    }

    /// Whether the body ends with the connection: neither Content-Length nor chunks.
    pub fn ends_with_connection(&self) -> bool {
        self.get().chunked == 0 && self.response_headers().get(c"Content-Length").is_none()
    }

    /// How long the client may take to send or to receive something.
    pub fn timeout(&self) -> Duration {
        // SAFETY: a connection has its server.
        let timeout = unsafe { (*self.connection().base_server).timeout };
        Duration::from_micros(u64::try_from(timeout).unwrap_or_default())
    }

    /// Whether the client waits for "100 Continue".
    pub fn awaits_continue(&self) -> bool {
        self.get().expecting_100 != 0
    }

    /// A header of a response that is httpd's own.
    pub fn add_error_header(&mut self, name: &'static CStr, value: &'static CStr) {
        // SAFETY: the table of the request; the strings are for ever.
        unsafe { apr_table_setn(self.get().err_headers_out, name.as_ptr(), value.as_ptr()) };
    }

    pub fn brigade(self) -> Brigade {
        Brigade::new(self.pool(), self.connection().bucket_alloc)
    }

    pub fn input_filters(self) -> *mut ap_filter_t {
        self.get().input_filters
    }

    pub fn output_filters(self) -> *mut ap_filter_t {
        self.get().output_filters
    }

    /// The filters below the request, down to the socket.
    pub fn connection_filters(self) -> *mut ap_filter_t {
        self.connection().output_filters
    }

    pub fn is_aborted(&self) -> bool {
        self.connection().aborted != 0
    }

    /// No further request on this connection.
    pub fn close_connection(&mut self) {
        self.set_connection().keepalive = ap_conn_keepalive_e_AP_CONN_CLOSE;
    }

    /// Gives the connection up: nothing more is sent, httpd closes it without waiting.
    pub fn abort_connection(&mut self) {
        self.set_connection().aborted = 1;
    }

    /// The client's socket, where the request has one for itself (not a stream of HTTP/2).
    pub fn socket(&self) -> Option<RawFd> {
        if self.is_stream() {
            return None;
        }
        let mut descriptor: apr_os_sock_t = -1;
        // SAFETY: the connection is alive and its socket open.
        unsafe {
            let socket = ap_get_conn_socket(self.get().connection);
            (!socket.is_null() && apr_os_sock_get(&mut descriptor, socket) == APR_SUCCESS).then_some(descriptor)
        }
    }
}

/// Whether this process has been told to end, perhaps gracefully.
pub fn process_is_stopping() -> bool {
    mpm_query(super::AP_MPMQ_MPM_STATE) == Some(AP_MPMQ_STOPPING)
}
