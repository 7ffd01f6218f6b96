/* What is bound: nginx's headers and the shim. */
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>
#include <nginx.h>

/* What a binding cannot evaluate: macros, and what differs between versions. */
extern const char hb_signature[];
extern const ngx_uint_t hb_http_module;

void hb_post_event(ngx_event_t *event);
void hb_delete_posted_event(ngx_event_t *event);
void hb_post_next_event(ngx_event_t *event);
void hb_add_timer(ngx_event_t *event, ngx_msec_t time);
void hb_del_timer(ngx_event_t *event);
ngx_int_t hb_add_read_event(ngx_connection_t *c);
ngx_int_t hb_await_room(ngx_connection_t *c);
ngx_int_t hb_has_room(ngx_connection_t *c);
ngx_uint_t hb_is_ssl(ngx_http_request_t *r);
ngx_uint_t hb_is_http2(ngx_http_request_t *r);
off_t hb_buf_size(const ngx_buf_t *b);
void hb_add_cache_control(ngx_http_request_t *r, ngx_table_elt_t *h);
void hb_set_www_authenticate(ngx_http_request_t *r, ngx_table_elt_t *h);
void *hb_auth_basic_conf(ngx_http_request_t *r);
