//! Makes the bindings to httpd and APR from the installed headers, and tells the linker where libpython is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-env-changed=APXS");
    let Some(flags) = flags() else {
        println!("cargo::error=the headers of Apache httpd are missing: apt-get install apache2-dev (or set APXS)");
        exit(1);
    };
    bind(&flags);
    // Without an rpath the loader silently takes another libpython of the same name.
    if let Ok(directory) = env::var("DEP_HIGHBALL_PYTHON_LIBDIR") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{directory}");
    }
    // httpd unmaps modules at each restart, and libpython with them, which cannot be started twice.
    println!("cargo::rustc-link-arg=-Wl,-z,nodelete");
}

fn bind(flags: &[String]) {
    let bindings = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(flags)
        // Otherwise OK and the APR statuses are unsigned, and every call needs a cast.
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .allowlist_function("ap_.*|apr_.*")
        .allowlist_type("ap_.*|apr_.*|request_rec|server_rec|conn_rec|command_rec|cmd_parms|module|module_struct|process_rec|core_dir_config|core_server_config")
        .allowlist_var("apr_bucket_type_.*|ap_bucket_type_.*|ap_graceful_shutdown_timeout|ap_unixd_config")
        .allowlist_var("OK|DECLINED|DONE|SUSPENDED|HTTP_.*|MODULE_MAGIC.*|AP_.*|APR_.*")
        .allowlist_var("OR_.*|RSRC_CONF|ACCESS_CONF|EXEC_ON_READ|APLOG_.*|REQUEST_.*|OPT_.*|NOT_IN_.*|GLOBAL_ONLY|ENABLE_SENDFILE_.*")
        .layout_tests(false)
        .generate_comments(false)
        .generate();
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default().join("bindings.rs");
    let written = bindings
        .map_err(|error| error.to_string())
        .and_then(|bindings| bindings.write_to_file(out).map_err(|error| error.to_string()));
    if let Err(error) = written {
        println!("cargo::error=the bindings to Apache httpd could not be made (apt-get install libclang-dev): {error}");
        exit(1);
    }
}

/// The compiler flags that httpd and APR were built with: wrong ones give structures of another layout.
fn flags() -> Option<Vec<String>> {
    let apxs = env::var("APXS").ok();
    let apxs = apxs.as_deref().map_or(vec!["apxs2", "apxs"], |apxs| vec![apxs]);
    let query = |name: &str| apxs.iter().find_map(|apxs| output(apxs, &["-q", name]));
    let headers = query("INCLUDEDIR")?;
    if !Path::new(&headers).join("httpd.h").exists() {
        return None;
    }
    let mut flags = vec![format!("-I{headers}")];
    for (name, arguments) in [("APR_CONFIG", &["--includes", "--cppflags"][..]), ("APU_CONFIG", &["--includes"])] {
        flags.extend(output(&query(name)?, arguments)?.split_whitespace().map(str::to_string));
    }
    Some(flags)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_string()).filter(|text| !text.is_empty())
}
