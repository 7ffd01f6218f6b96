//! Where requests of a location run: here, in a process group, or where nginx variables say for each request. Event loop
//! only.

use std::rc::Rc;
use std::sync::Arc;

use highball::error::{Code, Report};
use highball::group::choice;
use highball::group::request::Answerer;
use highball::python::Application;

use crate::ffi::{self, ngx_http_complex_value_t, ngx_http_request_t};
use crate::group::{Group, Groups};

/// `wsgi_process_group` as written.
#[derive(Clone)]
pub enum Choice {
    /// Empty for the server's own processes.
    Named(String),
    /// Text with variables.
    Variable(ngx_http_complex_value_t),
}

/// Of a location that is complete.
pub enum Runs {
    Here(Arc<Application>),
    Group(String, Answerer),
    Chosen(Chosen),
}

/// The group is chosen for each request.
pub struct Chosen {
    pub text: ngx_http_complex_value_t,
    /// `wsgi_restrict_process`, where there is one.
    pub allowed: Option<Rc<Vec<String>>>,
    pub answerer: Answerer,
    /// Where requests may run here.
    pub application: Option<Arc<Application>>,
}

/// Who answers one request.
pub enum Place<'a> {
    Here(&'a Arc<Application>),
    Group(Rc<Group>, &'a Answerer),
}

impl Runs {
    /// `r` is alive, and of a location with this.
    pub fn place(&self, r: *mut ngx_http_request_t, groups: &Groups) -> Result<Place<'_>, Report> {
        match self {
            Runs::Here(application) => Ok(Place::Here(application)),
            Runs::Group(name, answerer) => {
                let group = groups.find(name).ok_or_else(|| {
                    let cause = format!("the process group \"{name}\" is not there");
                    Report::new(Code::PythonUnavailable, cause).remedy("see why in the log, where the server started")
                })?;
                Ok(Place::Group(group, answerer))
            }
            Runs::Chosen(chosen) => chosen.place(r, groups),
        }
    }
}

impl Chosen {
    fn place(&self, r: *mut ngx_http_request_t, groups: &Groups) -> Result<Place<'_>, Report> {
        let mut value = ffi::ngx_str_t { len: 0, data: std::ptr::null_mut() };
        // SAFETY: compiled when the configuration was read; evaluating it does not change it. The request is alive, by the
        // caller, and with it the value.
        let written = unsafe {
            if ffi::ngx_http_complex_value(r, (&raw const self.text).cast_mut(), &raw mut value) != ffi::OK {
                return Err(Report::new(Code::GroupUnknown, "nginx could not put the process group's name together"));
            }
            ffi::bytes(value)
        };
        let written = if written == OFF.as_bytes() { b"" } else { written };
        choice::check("wsgi_restrict_process", written, self.allowed.as_ref().map(|allowed| allowed.as_slice()))?;
        match (&self.application, str::from_utf8(written).ok().and_then(|name| groups.find(name))) {
            (Some(application), _) if written.is_empty() => Ok(Place::Here(application)),
            (_, Some(group)) => Ok(Place::Group(group, &self.answerer)),
            _ => Err(groups.with_names(|names| choice::unknown("wsgi_process_group", written, names))),
        }
    }
}

/// Stands for nginx's own processes.
pub const OFF: &str = "off";
