// Runs a program to which the kernel refuses one of io_uring's system calls, as the default profiles
// of containers do:
//
//   withouturing setup|enter|register ERRNO PROGRAM [ARGUMENT...]
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (count < 4) return fprintf(stderr, "withouturing: setup|enter|register ERRNO PROGRAM\n"), 2;
    unsigned call = !strcmp(arguments[1], "setup")   ? SYS_io_uring_setup
                    : !strcmp(arguments[1], "enter") ? SYS_io_uring_enter
                                                     : SYS_io_uring_register;
    unsigned code = (unsigned)atoi(arguments[2]);
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (code & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
    // Without it only root may set a filter (seccomp(2)).
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("withouturing: prctl");
        return 1;
    }
    execv(arguments[3], arguments + 3);
    perror("withouturing: execv");
    return 1;
}
